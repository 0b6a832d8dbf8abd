"""Our side of a benchmark: a configuration, the workflow up to some of its files, a training by hand, and the table.

Calls what a user calls, `snakemake` and `python -m pipeline.train`, so that a benchmark outlives changes inside.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from pipeline import records
from pipeline.config import BUDGETS
from pipeline.errors import PipelineError
from pipeline.flow import Run
from pipeline.paths import Results

ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).with_name("RESULTS.md")
COLUMNS = ("benchmark", "system", "figure", "setting")
CONFIGURATION = "3d_fullres"


@dataclass(frozen=True)
class Ours:
    """One run of the workflow in a folder of its own."""

    folder: Path
    config: dict[str, Any]

    @property
    def files(self) -> Results:
        return Results(self.config["name"])

    @property
    def plan_settings(self) -> str:
        """As the rules hand them to the stages."""
        return Run(self.config).configuration(SimpleNamespace(configuration=CONFIGURATION))

    @property
    def train_settings(self) -> dict[str, Any]:
        """The same for training, without its budget."""
        settings = json.loads(Run(self.config).settings("train"))
        return {key: value for key, value in settings.items() if key not in BUDGETS}

    def snakemake(self, *targets: Path, threads: int) -> None:
        """Make these files, or everything."""
        self.folder.mkdir(parents=True, exist_ok=True)
        configfile = self.folder / f"{self.config['name']}.yaml"
        configfile.write_text(yaml.safe_dump(self.config))
        command = ["snakemake", "--snakefile", ROOT / "Snakefile", "--directory", self.folder]
        run(*command, "--configfile", configfile, "--cores", threads, *targets)

    def train(self, *, fold: int, iterations: int, threads: int, device: str) -> str:
        """Train from the start, by hand; returns the log."""
        shutil.rmtree(self.folder / self.files.training(CONFIGURATION, fold), ignore_errors=True)
        settings = {**self.train_settings, "iterations": iterations}
        return run(
            *(sys.executable, "-m", "pipeline.train", "--results", self.config["name"], "--fold", fold),
            *("--configuration", CONFIGURATION, "--settings", json.dumps(settings)),
            *("--device", device, "--seed", "0", "--threads", threads),
            folder=self.folder,
        )

    def progress(self, fold: int) -> list[tuple[int, float]]:
        """Steps and elapsed seconds of each line."""
        rows = records.read_table(self.folder / self.files.progress(CONFIGURATION, fold))
        return [(int(row["step"]), float(row["elapsed_s"])) for row in rows]


def run(*command: object, folder: Path = ROOT, log: Path | None = None) -> str:
    """What it prints, on both streams.

    Raises:
        PipelineError: it failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run([*map(str, command)], cwd=folder, env=environment, **streams)
    if log:
        log.write_text(done.stdout)
    if done.returncode:
        raise PipelineError(f"{command[0]}: failed with {done.returncode}.\n{done.stdout[-4000:]}")
    return done.stdout


def machine(threads: int) -> str:
    """The processor and how many threads were used, for the table."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return f"{found[1].strip() if found else 'CPU'}, {threads} threads"


def record(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of the table and append them to RESULTS.md."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    head = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    print("\n".join([*head, *lines]), flush=True)
    with TABLE.open("a") as handle:
        handle.write("\n".join(lines) + "\n")
