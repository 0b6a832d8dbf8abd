"""What made the page, from what and where, and what each stage took; without the name of the machine or its user."""

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil

from pipeline import records
from pipeline.paths import COST, Results
from pipeline.report.scores import Row

PACKAGES = ("segsnake", "torch", "monai", "numpy", "scipy", "nibabel", "snakemake")
STAGES = (
    "discover",
    "check",
    "fingerprint",
    "plan",
    "preprocess",
    "train",
    "inference",
    "predict",
    "ensemble",
    "evaluate",
)
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


def stage_costs(files: Results, stages: Sequence[str] = STAGES) -> list[Row]:
    """Per stage that was measured: jobs, minutes of all of them one after the other, and the most memory of one.

    The memory of a job that is over before Snakemake looks is not known; if no job's is, None.
    """
    rows: list[Row] = []
    for stage in stages:
        jobs = [records.read_table(path)[0] for path in files.log(stage).parent.rglob(f"*{COST}")]
        if jobs:
            minutes = sum(float(job["s"]) for job in jobs) / 60
            known_gib = [float(job["max_rss"]) / 1024 for job in jobs if job["max_rss"] not in UNKNOWN]  # it counts MiB
            rows.append(
                {"stage": stage, "jobs": len(jobs), "minutes": minutes, "peak_gib": max(known_gib, default=None)}
            )
    return rows


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
