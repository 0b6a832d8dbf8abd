"""What made the page, and where, without the name of the machine or its user."""

import os
import platform
from datetime import UTC, datetime
from importlib import metadata

PACKAGES = ("torch", "monai", "numpy", "scipy", "nibabel", "snakemake")


def provenance() -> dict[str, str]:
    """What made this page and where, without the name of the machine or its user."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
