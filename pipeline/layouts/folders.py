"""Plain folders: `images/` and `labels/`, the two files of a case called alike; names of labels and channels are in config.yaml.

With several channels an image is one file of four axes, or `case_0000`, `case_0001`, … are the channels. Where there is one
channel, `_0000` may end every name. A folder in `images/` is a DICOM series, called as a file would be.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import CohortError
from pipeline.formats import split_suffix
from pipeline.layouts.found import CHANNEL, Found, Wanted, cohort_of_config, sorted_cases, subject_of
from pipeline.records import NO_FOLD, Case

IMAGES, LABELS = "images", "labels"
BESIDE_SCANS = (
    ".json",
    ".txt",
    ".md",
    ".tsv",
    ".csv",
    ".raw",
    ".zraw",
)  # notes of converters, voxels of .mhd and .nhdr


def sign(place: Path) -> str | None:
    """Why this is the layout, or None if it is not."""
    is_there = (place / IMAGES).is_dir() and (place / LABELS).is_dir()
    return f"{IMAGES}/ and {LABELS}/ are there" if is_there else None


def read(place: Path, wanted: Wanted) -> Found:
    """
    Raises:
        CohortError: names of channels or labels that are missing, or files that do not belong together.
    """
    cohort = cohort_of_config(place, place.absolute().name, "folders", wanted)
    images, labels = _files(place / IMAGES), _files(place / LABELS)
    channels = _channels(place / IMAGES, images, len(cohort.channels))
    if lonely := sorted(set(labels) - set(channels)):
        raise CohortError(
            f"{labels[lonely[0]]}: no image found in {place / IMAGES}, {lonely[0]} with the suffix of its format expected"
            f"{f' (and so of {len(lonely) - 1} more)' if lonely[1:] else ''}. Add it or move the label away."
        )
    cases = [
        Case(case, subject=subject_of(case), fold=NO_FOLD, label=labels.get(case), channels=files)
        for case, files in channels.items()
    ]
    return Found(cohort, sorted_cases(place / IMAGES, cases))


def _files(folder: Path) -> dict[str, Path]:
    """By name without suffix."""
    if not folder.is_dir():
        raise CohortError(f"{folder}: no such folder found, {IMAGES}/ and {LABELS}/ expected. Correct `cohort:`.")
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("[!.]*")):
        name, suffix = (path.name, "") if path.is_dir() else split_suffix(path.name)
        if not suffix and not path.is_dir():
            if path.suffix.lower() in BESIDE_SCANS:
                continue
            raise CohortError(
                f"{path}: a file of no known format found, scans expected. Convert it or move it out of {folder}."
            )
        if (first := found.setdefault(name, path)) is not path:
            raise CohortError(f"{path}: {first.name} found beside it, one file of each name expected. Keep one.")
    return found


def _channels(folder: Path, images: Mapping[str, Path], num_channels: int) -> dict[str, tuple[Path, ...]]:
    """The files of each case in the order of its channels; of four axes, the same file for all."""
    split = {name: CHANNEL.fullmatch(name) for name in images}
    if num_channels == 1:
        is_numbered = all(match and match["channel"] == "0000" for match in split.values())
        return {match["case"] if match and is_numbered else name: (images[name],) for name, match in split.items()}
    if not any(split.values()):
        return {name: (path,) * num_channels for name, path in images.items()}
    expected = [f"_{channel:04d}" for channel in range(num_channels)]
    count = Counter(match["case"] for match in split.values() if match)
    for name, match in split.items():
        if not match or f"_{match['channel']}" not in expected or count[match["case"]] != num_channels:
            raise CohortError(
                f"{images[name]}: {num_channels} channels declared, so {', '.join(expected)} of each case expected in "
                f"{folder}, or one file of four axes for every case. Rename the files or add what is missing."
            )
    return {case: tuple(images[case + number] for number in expected) for case in count}
