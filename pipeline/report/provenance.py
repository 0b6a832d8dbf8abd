"""What made the page, from what and where, and what each stage took; without the name of the machine or its user."""

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from pipeline import records
from pipeline.paths import COST, STAGES, Results
from pipeline.report.scores import Row

PACKAGES = ("segsnake", "torch", "monai", "numpy", "scipy", "nibabel", "snakemake")
UNKNOWN = ("-", "NA")  # in a table of Snakemake
HERE = Path(__file__).resolve().parents[2]  # the checkout, where there is one


def provenance(files: Results) -> dict[str, str]:
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "scans and labels": f"sha256 of {files.manifest.name}, which has that of every file: {records.sha256(files.manifest)}",
        "commit": git_commit(HERE) or "not run from a checkout",
        "machine of this page": machine(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def git_commit(checkout: Path) -> str | None:
    """Of this code, and whether it was changed since; None without a checkout or without git."""
    if not (checkout / ".git").exists():
        return None
    try:
        commit = _git(checkout, "rev-parse", "HEAD")
        return f"{commit}, with changes that are not committed" if _git(checkout, "status", "--short") else commit
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(checkout: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=checkout, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def machine() -> str:
    memory_gib = psutil.virtual_memory().total / 2**30
    return f"{platform.system()} {_processor()}, {os.cpu_count()} CPUs, {memory_gib:.0f} GiB"


def _processor() -> str:
    """The name on Linux, else the architecture."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def stage_costs(files: Results, configurations: Sequence[str], folds: Sequence[int]) -> list[Row]:
    """Per stage that was measured: jobs, minutes of all of them one after the other, the most memory of one, and devices.

    The memory of a job that is over before Snakemake looks is not known; if no job's is, None. Stages that cannot use a
    GPU are said to run on a CPU; what the others used is empty where they did not write it down.
    """
    rows: list[Row] = []
    used = devices(files, configurations, folds)
    for stage in STAGES:
        jobs = [records.read_table(path)[0] for path in files.log(stage).parent.rglob(f"*{COST}")]
        if jobs:
            minutes = sum(float(job["s"]) for job in jobs) / 60
            known_gib = [float(job["max_rss"]) / 1024 for job in jobs if job["max_rss"] not in UNKNOWN]  # it counts MiB
            measured = {"jobs": len(jobs), "minutes": minutes, "peak_gib": max(known_gib, default=None)}
            rows.append({"stage": stage, **measured, "devices": used.get(stage, ["CPU"])})
    return rows


def devices(files: Results, configurations: Sequence[str], folds: Sequence[int]) -> dict[str, list[str]]:
    """What each stage that may use a GPU computed on, by its own records, each device once."""
    jobs = [(name, fold) for name in configurations for fold in folds]
    plans = [_read_if_there(files.plan(name)) for name in configurations]
    found = {
        "plan": [
            width["device"].upper() for plan in plans for width in plan.get("widths", ())
        ],  # its kind, cpu or cuda
        "train": [_read_if_there(files.training_facts(*job)).get("device") for job in jobs],
        "inference": [_read_if_there(files.inference(name)).get("device") for name in configurations],
        "predict": [_read_if_there(files.predicted(*job)).get("device") for job in jobs],
    }
    return {stage: sorted({device for device in of_stage if device}) for stage, of_stage in found.items()}


def _read_if_there(path: Path) -> dict[str, Any]:
    return records.read_json(path) if path.exists() else {}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
