"""The Medical Segmentation Decathlon's layout: `dataset.json` lists every case, with its image and its label.

An image is one file: with several channels declared it has four axes, unless it is called `case_0000`; then
`case_0001`, … beside it are the other channels. An entry may say `subject` and, as MONAI's lists do, `fold`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import CohortError
from pipeline.formats import split_suffix
from pipeline.layouts import description
from pipeline.layouts.found import Found, Wanted, named_labels, renamed_channels, sorted_cases, subject_of
from pipeline.records import NO_FOLD, Case, Cohort

FIRST = "_0000"  # ends the name of the first channel's file


def sign(place: Path) -> str | None:
    """Why this is the layout, or None if it is not."""
    if not (place / description.FILE).is_file():
        return None
    listed = description.read_description(place / description.FILE)
    if "training" not in listed and {"channel_names", "file_ending", "dataset"} & listed.keys():
        return None
    images = list(images_of(listed))
    is_numbered = any((place / with_number(image)).exists() for image in images)
    if is_numbered and not any((place / image).exists() for image in images):
        return None
    return f"{description.FILE} lists {images[0]}" if images else f"{description.FILE} is there"


def images_of(listed: Mapping[str, Any]) -> list[str]:
    """The images of all entries that name one."""
    entries = listed.get("training")
    found = [entry.get("image") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return [image for image in found if isinstance(image, str) and image]


def with_number(image: str) -> str:
    """`imagesTr/a.nii.gz` as nnU-Net calls the file of its first channel."""
    stem, suffix = split_suffix(image)
    return f"{stem}{FIRST}{suffix}"


def read(place: Path, wanted: Wanted) -> Found:
    """
    Raises:
        CohortError: a `dataset.json` that is missing, not valid or contradicts itself.
    """
    file = place / description.FILE
    listed = description.read_description(file)
    channels = renamed_channels(file, description.declared_channels(file, listed), wanted)
    labels = {} if wanted.task == "regression" else description.declared_labels(file, listed)
    cohort = Cohort(
        name=str(listed.get("name") or place.absolute().name),
        layout="MSD",
        labels=named_labels(file, labels, wanted),
        channels=channels,
        ignore_label=wanted.ignore_label,
        regions=dict(wanted.regions),
        task=wanted.task,
    )
    cases = [_case(file, entry, len(channels)) for entry in entries_of(file, listed)]
    return Found(cohort, sorted_cases(file, cases))


def entries_of(file: Path, listed: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cases that `dataset.json` lists.

    Raises:
        CohortError: none, or one that names no image.
    """
    entries = listed.get("training")
    if not isinstance(entries, list) or not entries:
        raise CohortError(f"{file}: no case found, a list of them under `training` expected. List the cases.")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not entry.get("image") or not _are_texts(entry, "image", "label", "subject"):
            expected = '{"image": "...", "label": "..."}'
            raise CohortError(f"{file}: training entry {number} is {entry!r}, {expected} expected. Correct it.")
        if (fold := entry.get("fold", 0)) is True or not isinstance(fold, int) or fold < 0:
            raise CohortError(
                f"{file}: `fold` of training entry {number} is {fold!r}, 0 or a number above expected. Correct it."
            )
    return entries


def _are_texts(entry: Mapping[str, object], *keys: str) -> bool:
    return all(isinstance(entry.get(key, ""), str) for key in keys)


def _case(file: Path, entry: Mapping[str, Any], num_channels: int) -> Case:
    image = file.parent / entry["image"]
    case, suffix = split_suffix(image.name)
    channels = (image,) * num_channels
    if num_channels > 1 and case.endswith(FIRST):
        case = case.removesuffix(FIRST)
        channels = tuple(image.with_name(f"{case}_{channel:04d}{suffix}") for channel in range(num_channels))
    return Case(
        case,
        subject=entry.get("subject") or subject_of(case),
        fold=entry.get("fold", NO_FOLD),
        label=file.parent / entry["label"] if entry.get("label") else None,
        channels=channels,
    )
