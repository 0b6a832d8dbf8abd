"""A deterministic run of the whole flow that takes seconds, in a folder of its own: started, killed, and what it made.

Two configurations, so that probabilities are made and deleted; on one thread, so that the order of sums never differs.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from pipeline.paths import COST
from pipeline.phantoms import write_cohort
from pipeline.records import digests, read_table

ROOT = Path(__file__).parents[1]
NAME = "small"
TINY = {"features": 4, "patch_size": [16, 16, 16], "batch_size": 2}
SETTINGS = {
    "name": NAME,
    "cohort": "scans",
    "folds": 2,
    "run_folds": [0],
    "device": "cpu",
    "threads": 1,
    "configurations": {"2d": {"dims": 2, **TINY, "patch_size": [16, 16]}, "3d_fullres": {"dims": 3, **TINY}},
    "train": {"iterations": 12, "deterministic": True},
}
SAME = ("masks/*/*.nii.gz", "metrics.tsv", "summary.tsv", "comparison.tsv", "ensemble/choice.json")


def prepare(folder: Path) -> None:
    """A cohort of four phantoms and the configuration."""
    write_cohort(folder / "scans", num_cases=4, size=0.5)
    (folder / "config.json").write_text(json.dumps(SETTINGS))


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """`snakemake` in a process group of its own; what it says goes to `said.txt`."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
    command += [*arguments, "--configfile", "config.json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "said.txt").open("w") as said:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=said, stderr=said, text=True, start_new_session=True
        )


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    """The exit code, and what it said."""
    code = start(folder, *arguments).wait(timeout=1800)
    return code, (folder / "said.txt").read_text()


def kill(folder: Path, log: str, seconds: float, *, only_jobs: bool = False) -> bool:
    """SIGKILL for a run, with its jobs or for them alone, so many seconds after the job of this log began.

    Returns:
        False if the run ended before.
    """
    process = start(folder)
    while not (folder / log).exists() and process.poll() is None:
        time.sleep(0.02)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        if only_jobs:
            while not (jobs := psutil.Process(process.pid).children(recursive=True)):
                time.sleep(0.01)
            for job in jobs:
                with suppress(psutil.NoSuchProcess):
                    job.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def go_on(folder: Path) -> tuple[int, str]:
    """What the README says to do after a kill."""
    assert run(folder, "--unlock")[0] == 0, (folder / "said.txt").read_text()
    return run(folder)


def jobs(folder: Path) -> dict[str, float]:
    """The log of every job of a finished run, in the order of their ends, and the seconds that the job took."""
    costs = sorted((folder / "logs" / NAME).rglob(f"*{COST}"), key=lambda path: path.stat().st_mtime_ns)
    logs = {path: path.relative_to(folder).as_posix().removesuffix(COST) + ".log" for path in costs}
    return {log: float(read_table(path)[0]["s"]) for path, log in logs.items()}


def made(folder: Path) -> dict[str, str]:
    """The sha256 of all that a kill must not change, by its path below the results."""
    results = folder / "results" / NAME
    found = digests(path for pattern in SAME for path in results.glob(pattern))
    return {path.relative_to(results).as_posix(): digest for path, digest in found.items()}
