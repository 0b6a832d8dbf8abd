"""What the workflow has to know of a cohort before `discover` has run: which files and names it depends on, and what of the
configuration the cohort has said already. Light, for every call of Snakemake asks.
"""

import hashlib
from pathlib import Path
from typing import Any

from pipeline.errors import CohortError
from pipeline.layouts import description

DESCRIPTIONS = (
    description.FILE,
    "splits_final.json",
    "dataset_description.json",
    "derivatives/*.tsv",
    "derivatives/*/*.tsv",
)
SCANS = (
    *("imagesTr/*", "labelsTr/*", "images/*", "labels/*"),
    *(f"{place}sub-*/{depth}" for place in ("", "derivatives/", "derivatives/*/") for depth in ("*/*", "*/*/*")),
)


def descriptions(place: Path) -> list[Path]:
    """The files that say what the cohort is, as far as they are there; the table if it is one."""
    if place.is_file():
        return [place]
    return sorted(path for pattern in DESCRIPTIONS for path in place.glob(pattern))


def digest(place: Path) -> str:
    """Another one when a scan or label is added, renamed or gone, or when what describes them has changed."""
    names = sorted(path.relative_to(place).as_posix() for pattern in SCANS for path in place.glob(pattern))
    found = hashlib.sha256("\n".join(names).encode(errors="surrogateescape"))
    for path in filter(Path.is_file, descriptions(place)):
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def config_of(place: Path) -> dict[str, Any]:
    """The keys of config.yaml that a dataset.json there has a word for; none where it cannot be read, as `discover` says."""
    try:
        found = description.read_description(place / description.FILE)
    except CohortError:
        return {}
    declared = {
        "regions": description.declared_regions(found),
        "ignore_label": description.declared_ignore_label(found),
        "normalisation": description.declared_normalisation(found),
    }
    return {key: value for key, value in declared.items() if value}
