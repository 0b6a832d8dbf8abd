"""Files that are whole or not there, whatever ends the process that writes them, and disks that take no more.

Knows nothing of what the files hold.
"""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import DiskError

REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # of a disk, whatever is written
PARTIAL = ".partial-"  # begins the name of a file that is being written, before the host and the process


@contextmanager
def written_whole(path: Path, *, is_durable: bool = True) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error.

    `is_durable`: flushed to disk first, which files need not be whose digest is asked for before they are used.

    Raises:
        DiskError: see `on_disk`.
    """
    partial = path.with_name(f"{PARTIAL}{socket.gethostname()}-{os.getpid()}-{path.name}")
    with on_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            if is_durable:
                with partial.open("rb") as handle:
                    os.fsync(handle.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """What is done meanwhile writes to `path`, which a full disk does not name.

    Raises:
        DiskError: no room for it, or the disk is read only.
    """
    try:
        yield
    except DiskError:
        raise
    except Exception as error:
        if (number := _refusal(error)) is None:
            raise
        raise DiskError(
            f"{path}: {os.strerror(number)} ({errno.errorcode[number]}) found, a disk with room to write on expected. "
            "Make room, and run the same command again."
        ) from error


def _refusal(error: BaseException | None) -> int | None:
    """Why a disk took no more, also where a library failed once more while it cleaned up; None for any other error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in REFUSALS:
            return error.errno
        error = error.__context__
    return None


def write_text(path: Path, text: str, *, is_durable: bool = True) -> None:
    with written_whole(path, is_durable=is_durable) as partial:
        partial.write_text(text, encoding="utf-8")
