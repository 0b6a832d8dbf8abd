"""Files that a killed process was writing: found by their names and deleted before a run begins.

A process that lives goes on undisturbed, such as a job that outlives the Snakemake that started it.
"""

import os
import re
import socket
import time
from contextlib import suppress
from pathlib import Path

import psutil

from pipeline.disk import PARTIAL

LONG_ENOUGH_S = 24 * 3600.0  # whether a process of another machine lives is not known here


def remove_abandoned(folder: Path) -> None:
    """Those in `folder` and below; there need not be such a folder."""
    found = [Path(place, name) for place, _, names in os.walk(folder) for name in names if name.startswith(PARTIAL)]
    for path in found:
        with suppress(FileNotFoundError):  # just finished
            if is_abandoned(path):
                path.unlink()


def is_abandoned(path: Path) -> bool:
    if of_this_machine := re.match(rf"{re.escape(PARTIAL + socket.gethostname())}-(\d+)-", path.name):
        return not psutil.pid_exists(int(of_this_machine[1]))
    return time.time() - path.stat().st_mtime > LONG_ENOUGH_S
