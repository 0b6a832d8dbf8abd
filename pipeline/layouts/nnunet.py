"""nnU-Net's raw layout: `imagesTr/case_0000.nii.gz` for each channel, `labelsTr/case.nii.gz`, and `dataset.json`.

Version 1 of `dataset.json` lists the cases without the channel's number; version 2 says `channel_names` and `file_ending`, may
name the files of each case under `dataset`, and otherwise leaves the cases to the folders. Labels of several values are
regions, `ignore` is the value of voxels that nobody labelled, and a `splits_final.json` there gives the folds.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.errors import CohortError
from pipeline.formats import split_suffix
from pipeline.layouts import description, msd
from pipeline.layouts.found import (
    CHANNEL,
    Found,
    Wanted,
    named_labels,
    renamed_channels,
    sorted_cases,
    subject_of,
)
from pipeline.records import NO_FOLD, Case, Cohort
from pipeline.regions import painted_values

IMAGES, LABELS = "imagesTr", "labelsTr"
SPLITS = "splits_final.json"
VERSION_2 = ("channel_names", "file_ending", "dataset")  # keys that only its dataset.json has


def sign(place: Path) -> str | None:
    """Why this is the layout, or None if it is not."""
    if not (place / description.FILE).is_file():
        return None
    listed = description.read_description(place / description.FILE)
    if "training" not in listed:
        key = next((key for key in VERSION_2 if key in listed), None)
        return f"{description.FILE} has {key} and lists no training cases" if key else None
    for image in msd.images_of(listed):
        if (place / msd.with_number(image)).exists():
            return f"{description.FILE} lists {image} and the file is {Path(msd.with_number(image)).name}"
    return None


def read(place: Path, wanted: Wanted) -> Found:
    """
    Raises:
        CohortError: a `dataset.json` or `splits_final.json` that is not valid or contradicts the folders.
    """
    file = place / description.FILE
    listed = description.read_description(file)
    channels = renamed_channels(file, description.declared_channels(file, listed), wanted)
    if wanted.ignore_label is None and wanted.task == "segmentation":
        wanted = replace(wanted, ignore_label=description.declared_ignore_label(listed))
    cohort = Cohort(
        name=str(listed.get("name") or place.absolute().name),
        layout="nnU-Net",
        labels=named_labels(file, _labels(file, listed, wanted), wanted),
        channels=channels,
        ignore_label=wanted.ignore_label,
        regions=dict(wanted.regions) or _regions(file, listed),
        task=wanted.task,
    )
    cases = sorted_cases(file, _cases(file, listed, len(channels)))
    return Found(cohort, with_given_folds(place / SPLITS, cases) if (place / SPLITS).exists() else cases)


def _labels(file: Path, listed: Mapping[str, Any], wanted: Wanted) -> dict[int, str]:
    return {} if wanted.task == "regression" else description.declared_labels(file, listed)


def _regions(file: Path, listed: Mapping[str, Any]) -> dict[str, list[int]]:
    """In the order in which they are painted, which has to give the values that nnU-Net would write."""
    regions = description.declared_regions(listed)
    order, painted = listed.get("regions_class_order"), painted_values(list(regions.values()))
    if regions and order is not None and order != painted:
        raise CohortError(
            f"{file}: `regions_class_order` is {order}, {painted} expected: a region is painted with its lowest value that "
            "no later one has. Correct the order of the regions, or give `regions` in config.yaml, which win."
        )
    return regions


def _cases(file: Path, listed: Mapping[str, Any], num_channels: int) -> list[Case]:
    if "training" in listed:
        return [_listed_case(file, entry, num_channels) for entry in msd.entries_of(file, listed)]
    if "dataset" in listed:
        return [_dataset_case(file, case, entry, num_channels) for case, entry in _entries(file, listed).items()]
    return _cases_of_folders(file, listed, num_channels)


def _listed_case(file: Path, entry: Mapping[str, Any], num_channels: int) -> Case:
    image = file.parent / entry["image"]
    name, suffix = split_suffix(image.name)
    channels = [image.with_name(f"{name}_{channel:04d}{suffix}") for channel in range(num_channels)]
    return _case(name, channels, file.parent / entry["label"] if entry.get("label") else None)


def _entries(file: Path, listed: Mapping[str, Any]) -> dict[str, Any]:
    entries = listed["dataset"]
    if not isinstance(entries, dict):
        raise CohortError(
            f"{file}: `dataset` is {entries!r}, files by case expected, as in "
            '{"a": {"images": ["a.nii.gz"], "label": "b.nii.gz"}}. Correct it.'
        )
    return entries


def _dataset_case(file: Path, case: str, entry: Any, num_channels: int) -> Case:
    images = entry.get("images") if isinstance(entry, dict) else None
    label = entry.get("label") if isinstance(entry, dict) else None
    is_right = isinstance(images, list) and len(images) == num_channels and isinstance(label, str)
    if not is_right or not all(isinstance(image, str) for image in images or []):
        raise CohortError(
            f"{file}: case {case} of `dataset` is {entry!r}, `images` with {num_channels} files and a `label` expected. "
            "Correct it."
        )
    return _case(case, [file.parent / image for image in images or []], file.parent / str(label))


def _cases_of_folders(file: Path, listed: Mapping[str, Any], num_channels: int) -> list[Case]:
    """Every case with a scan; of a channel that is missing the name is written, for `check` to refuse.

    Where every scan is a `_0000`, that file holds all channels, as colour pictures do.
    """
    ending = listed.get("file_ending", ".nii.gz")
    if not isinstance(ending, str) or not ending.startswith("."):
        raise CohortError(f"{file}: `file_ending` is {ending!r}, something like '.nii.gz' expected. Correct it.")
    images, labels = file.parent / IMAGES, file.parent / LABELS
    ids, numbers = set(), set()
    for name in _names(images, ending):
        numbered = CHANNEL.fullmatch(name)
        if not numbered or int(numbered["channel"]) >= num_channels:
            raise CohortError(
                f"{images / (name + ending)}: a name that ends in _0000 to _{num_channels - 1:04d} expected, one file for "
                f"each of {num_channels} channels in {file.name}. Rename it or move it away."
            )
        ids.add(numbered["case"])
        numbers.add(numbered["channel"])
    labelled = set(_names(labels, ending))
    if lonely := sorted(labelled - ids):
        raise CohortError(
            f"{labels / (lonely[0] + ending)}: no image found in {images}, {lonely[0]}_0000{ending} expected"
            f"{f' (and so of {len(lonely) - 1} more)' if lonely[1:] else ''}. Add it or move the label away."
        )
    if listed.get("numTraining", len(ids)) != len(ids):
        raise CohortError(
            f"{images}: {len(ids)} cases found, {listed['numTraining']} by `numTraining` of {file.name} expected. "
            "Correct it or add what is missing."
        )
    channels = [0] * num_channels if numbers == {"0000"} else range(num_channels)
    return [
        _case(
            case,
            [images / f"{case}_{channel:04d}{ending}" for channel in channels],
            labels / f"{case}{ending}" if case in labelled else None,
        )
        for case in ids
    ]


def _names(folder: Path, ending: str) -> list[str]:
    if not folder.is_dir():
        raise CohortError(f"{folder}: no such folder found, the scans of nnU-Net's layout expected. Correct `cohort:`.")
    return [path.name.removesuffix(ending) for path in folder.glob(f"[!.]*{ending}")]


def _case(case: str, channels: Sequence[Path], label: Path | None) -> Case:
    return Case(case, subject=subject_of(case), fold=NO_FOLD, label=label, channels=tuple(channels))


def with_given_folds(file: Path, cases: Sequence[Case]) -> list[Case]:
    """The cases with the fold in whose `val` they are.

    Raises:
        CohortError: not nnU-Net's list, a case in no fold or in two, or a fold that trains with other cases than the rest.
    """
    try:
        splits = [(list(split["train"]), list(split["val"])) for split in json.loads(file.read_bytes())]
    except (ValueError, TypeError, KeyError) as error:
        raise CohortError(
            f"{file}: not nnU-Net's splits ({type(error).__name__}: {error}), "
            '[{"train": ["a", ...], "val": ["b", ...]}, ...] expected. Correct it or move it away.'
        ) from error
    ids = {case.case for case in cases}
    places: dict[str, list[int]] = {case: [] for case in sorted(ids)}
    for fold, (train, val) in enumerate(splits):
        if sorted(train) != sorted(ids - set(val)):
            odd = sorted(set(train) ^ (ids - set(val)), key=str)
            raise CohortError(
                f"{file}: fold {fold} trains with {len(train)} cases, the {len(ids - set(val))} that are not in its `val` "
                f"expected (see {', '.join(map(str, odd[:3]))}). Correct it or move it away."
            )
        for case in val:
            places.setdefault(str(case), []).append(fold)
    for case, folds in places.items():
        if case not in ids or len(folds) != 1:
            found = f"in folds {', '.join(map(str, folds))}" if folds else "in no fold"
            what = "in `val` of one fold expected" if case in ids else f"no such case in {IMAGES}: none expected"
            raise CohortError(f"{file}: case {case} found {found}, {what}. Correct it or move it away.")
    return [replace(case, fold=places[case.case][0]) for case in cases]
