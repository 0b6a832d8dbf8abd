"""A dataset.json, as the Decathlon and nnU-Net write it: its names of labels and channels, and its regions.

Knows what the keys mean; which files belong to a case is for the layouts to say.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import CohortError

FILE = "dataset.json"
IGNORE = "ignore"  # the name that nnU-Net gives to the value of voxels that nobody labelled
NORMALISATIONS = {"nonorm": "none", "rescale_to_0_1": "rescale"}  # ours, by nnU-Net's channel names
UNNAMED = "unnamed"  # a value of regions that has no name of its own


def read_description(file: Path) -> dict[str, Any]:
    """
    Raises:
        CohortError: not there, or no JSON object.
    """
    if not file.is_file():
        raise CohortError(
            f"{file.parent}: no dataset.json found, the layout of the Medical Segmentation Decathlon "
            "(dataset.json, imagesTr, labelsTr) or of nnU-Net expected. Point `cohort:` at the folder that holds it."
        )
    try:
        description = json.loads(file.read_bytes())
    except ValueError as error:
        raise CohortError(f"{file}: not JSON ({error}), valid JSON expected. Correct the file.") from error
    if not isinstance(description, dict):
        kind = type(description).__name__
        raise CohortError(f"{file}: a {kind} found, a JSON object {{...}} expected. Correct the file.")
    return description


def declared_labels(file: Path, description: Mapping[str, Any]) -> dict[int, str]:
    """By value: from `{"1": "liver"}` as MSD writes it, or from nnU-Net's `{"liver": 1}` or `{"whole": [1, 2]}`.

    Raises:
        CohortError: no mapping, or values that are no integers.
    """
    labels = description.get("labels")
    if not isinstance(labels, dict):
        expected = '{"0": "background", "1": "liver"}'
        raise CohortError(f"{file}: `labels` is {labels!r}, something like {expected} expected. Correct it.")
    try:
        return {int(value): str(name) for value, name in labels.items()}
    except ValueError:
        pass
    values = {name: value if isinstance(value, list) else [value] for name, value in labels.items()}
    try:
        numbers = {name: [int(one) for one in several] for name, several in values.items()}
    except (ValueError, TypeError) as error:
        raise CohortError(
            f"{file}: `labels` is {labels}, one integer, or a list of them, for each name expected. Correct it."
        ) from error
    own = {several[0]: name for name, several in numbers.items() if len(several) == 1}
    return {value: own.get(value, UNNAMED) for several in numbers.values() for value in several}


def declared_channels(file: Path, description: Mapping[str, Any]) -> list[str]:
    """
    Raises:
        CohortError: not numbered from 0.
    """
    declared = description.get("modality") or description.get("channel_names")
    if not isinstance(declared, dict) or not declared or set(declared) != set(map(str, range(len(declared)))):
        expected = '{"0": "CT"}'
        raise CohortError(f"{file}: `modality` is {declared!r}, something like {expected} expected. Correct it.")
    return [str(declared[str(index)]) for index in range(len(declared))]


def declared_regions(description: Mapping[str, Any]) -> dict[str, list[int]]:
    """In order, if one label at least has several values, as nnU-Net writes regions; else none."""
    labels = description.get("labels")
    if not isinstance(labels, dict) or not any(isinstance(values, list) for values in labels.values()):
        return {}
    return {
        str(name): values if isinstance(values, list) else [values]
        for name, values in labels.items()
        if values not in (0, [0]) and name != IGNORE
    }


def declared_ignore_label(description: Mapping[str, Any]) -> int | None:
    labels = description.get("labels")
    value = labels.get(IGNORE) if isinstance(labels, dict) else None
    return value if isinstance(value, int) else None


def declared_normalisation(description: Mapping[str, Any]) -> dict[str, str]:
    """By channel index as text: what nnU-Net does to channels of certain names."""
    names = description.get("channel_names")
    by_index = {index: str(name).casefold() for index, name in names.items()} if isinstance(names, dict) else {}
    return {index: NORMALISATIONS[name] for index, name in by_index.items() if name in NORMALISATIONS}
