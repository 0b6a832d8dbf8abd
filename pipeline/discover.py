"""A cohort folder, or the word `demo`, to `cases.tsv` and `cohort.json`: the files and fold of each case.

Reads names only: no scan is opened, and a file that is listed but missing is left to `check`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import errors, phantoms, records
from pipeline.config import DEMO
from pipeline.errors import CohortError
from pipeline.paths import Results
from pipeline.records import BACKGROUND, Case, Cohort, Task
from pipeline.splits import assign_folds

DEMO_CASES = 20
Names = Mapping[str, str]  # by label value or channel index as text
CASE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def main(results: str, cohort: str, settings: str) -> None:
    """`settings`: `{"folds": 5, "seed": 12345, "labels": {"1": "liver"}, "channels": {"0": "CT"}, "ignore_label": 9,
    "regions": [["whole", [1, 2]], ["core", [2]]], "task": "segmentation"}`."""
    files = Results(results)
    wanted = json.loads(settings)
    folder = Path(cohort)
    if cohort == DEMO:
        folder = files.demo_scans
        phantoms.write_cohort(
            folder, num_cases=DEMO_CASES, seed=wanted["seed"], modality="CT", has_values=wanted["task"] == "regression"
        )
    found, cases = read_msd(
        folder,
        labels=wanted["labels"],
        channels=wanted["channels"],
        ignore_label=wanted["ignore_label"],
        task=wanted["task"],
    )
    found = with_regions(found, dict(wanted["regions"]))
    subjects = [case.subject for case in cases]
    folds = assign_folds(subjects, wanted["folds"], wanted["seed"])
    cases = [replace(case, fold=fold) for case, fold in zip(cases, folds, strict=True)]
    records.write_cases(files.cases, cases)
    records.write_cohort(files.cohort, found)
    print(f"discover: {found.layout} layout in {folder}")
    print(f"discover: {len(cases)} cases, {len(set(subjects))} subjects, {wanted['folds']} folds")
    print(f"discover: labels {_listed(found.labels) or 'none'}; channels {_listed(found.channels)}")


def _listed(names: Mapping[int, str]) -> str:
    return ", ".join(f"{number} {name}" for number, name in names.items())


def with_regions(cohort: Cohort, regions: dict[str, list[int]]) -> Cohort:
    """
    Raises:
        CohortError: a region of a value that is no label.
    """
    for name, values in regions.items():
        if unknown := sorted(set(values) - set(cohort.foreground)):
            raise CohortError(
                f"regions.{name}: {unknown} found, labels of the cohort ({_listed(cohort.foreground)}) expected. "
                "Correct `regions` or declare the label under `labels`."
            )
    return replace(cohort, regions=regions)


def read_msd(
    folder: Path,
    *,
    labels: Names,
    channels: Names,
    ignore_label: int | None = None,
    task: Task = "segmentation",
) -> tuple[Cohort, list[Case]]:
    """The cohort and its cases, sorted by id and all in fold 0, of a Medical Segmentation Decathlon folder.

    Args:
        labels: names that win over those of `dataset.json`, by label value as text; further values are added.
        channels: names that win over those of `dataset.json`, by channel index as text.
        ignore_label: the value of voxels that nobody labelled, declared there or not.
        task: in a regression, label files hold values, and no label is declared.

    Raises:
        CohortError: no such folder, or a `dataset.json` that is missing, not valid or contradicts the files.
    """
    file = folder / "dataset.json"
    description = _read_description(file)
    modality = description.get("modality") or description.get("channel_names")
    cohort = Cohort(
        name=str(description.get("name") or folder.name),
        layout="MSD",
        labels={} if task == "regression" else _label_names(file, description.get("labels"), labels, ignore_label),
        channels=_channel_names(file, modality, channels),
        ignore_label=ignore_label,
        task=task,
    )
    entries = description.get("training")
    if not isinstance(entries, list) or not entries:
        raise CohortError(f"{file}: no case found, a list of them under `training` expected. List the cases.")
    cases = [_case(file, number, entry, len(cohort.channels)) for number, entry in enumerate(entries)]
    _refuse_bad_ids(file, cases)
    if len(cohort.channels) > 1 and not any(case.channels[0].exists() for case in cases):
        raise CohortError(
            f"{file}: {len(cohort.channels)} channels declared, yet no {cases[0].channels[0]} found. One "
            "file per channel (case_0000.nii.gz, ...) expected, for 4-D files are not read yet. Split the files."
        )
    return cohort, sorted(cases, key=lambda case: case.case)


def _read_description(file: Path) -> dict[str, Any]:
    if not file.parent.is_dir():
        raise CohortError(
            f"{file.parent}: no such folder found, a folder of scans or `demo` expected. Correct `cohort:`."
        )
    if not file.is_file():
        raise CohortError(
            f"{file.parent}: no dataset.json found, the layout of the Medical Segmentation Decathlon "
            "(dataset.json, imagesTr, labelsTr) expected. Point `cohort:` at the folder that holds it."
        )
    try:
        description = json.loads(file.read_bytes())
    except ValueError as error:
        raise CohortError(f"{file}: not JSON ({error}), valid JSON expected. Correct the file.") from error
    if not isinstance(description, dict):
        kind = type(description).__name__
        raise CohortError(f"{file}: a {kind} found, a JSON object {{...}} expected. Correct the file.")
    return description


def _label_names(file: Path, declared: object, wanted: Names, ignored: int | None) -> dict[int, str]:
    """By value: from `{"1": "liver"}` as MSD writes it, or from nnU-Net's `{"liver": 1}`."""
    if not isinstance(declared, dict):
        expected = '{"0": "background", "1": "liver"}'
        raise CohortError(f"{file}: `labels` is {declared!r}, something like {expected} expected. Correct it.")
    try:
        by_value = {int(value): str(name) for value, name in declared.items()}
    except ValueError:
        try:
            by_value = {int(value): str(name) for name, value in declared.items()}
        except (ValueError, TypeError) as error:
            message = f"{file}: `labels` is {declared}, one integer for each name expected. Correct it."
            raise CohortError(message) from error
    names = {BACKGROUND: "background"} | by_value | {int(value): name for value, name in wanted.items()}
    names = {value: name for value, name in names.items() if value != ignored}
    if len(names) == 1 or min(names) < 0:
        found = ", ".join(map(str, sorted(names)))
        raise CohortError(f"{file}: labels {found} found, 0 and at least one above it expected. Correct `labels`.")
    return dict(sorted(names.items()))


def _channel_names(file: Path, declared: object, wanted: Names) -> dict[int, str]:
    if not isinstance(declared, dict) or not declared or set(declared) != set(map(str, range(len(declared)))):
        expected = '{"0": "CT"}'
        raise CohortError(f"{file}: `modality` is {declared!r}, something like {expected} expected. Correct it.")
    if unknown := ", ".join(sorted(set(wanted) - set(declared))):
        raise CohortError(
            f"{file}: channel {unknown} of `channels` in config.yaml not found, one of {', '.join(declared)} "
            "expected. Remove it there or declare it here."
        )
    names = declared | dict(wanted)
    return {index: str(names[str(index)]) for index in range(len(names))}


def _case(file: Path, number: int, entry: object, num_channels: int) -> Case:
    if not isinstance(entry, dict) or not entry.get("image") or not _are_texts(entry, "image", "label", "subject"):
        expected = '{"image": "...", "label": "..."}'
        raise CohortError(f"{file}: training entry {number} is {entry!r}, {expected} expected. Correct it.")
    image = file.parent / entry["image"]
    case, suffix = _split_suffix(image.name)
    channels = (image,)
    if num_channels > 1:
        case = case.removesuffix("_0000")
        channels = tuple(image.with_name(f"{case}_{channel:04d}{suffix}") for channel in range(num_channels))
    label = file.parent / entry["label"] if entry.get("label") else None
    return Case(case, subject=entry.get("subject") or case, fold=0, label=label, channels=channels)


def _are_texts(entry: Mapping[str, object], *keys: str) -> bool:
    return all(isinstance(entry.get(key, ""), str) for key in keys)


def _split_suffix(name: str) -> tuple[str, str]:
    for suffix in (".nii.gz", ".nii"):
        if name.endswith(suffix):
            return name.removesuffix(suffix), suffix
    return name, ""


def _refuse_bad_ids(file: Path, cases: Sequence[Case]) -> None:
    by_id: dict[str, Case] = {}
    for case in cases:
        if not CASE_ID.fullmatch(case.case):
            raise CohortError(
                f"{file}: case id {case.case!r} found, 1 to 64 letters, digits, '.', '_' or '-', the first a "
                f"letter or digit, expected. Rename {str(case.channels[0])!r}."
            )
        if (first := by_id.setdefault(case.case.casefold(), case)) is not case:
            raise CohortError(
                f"{file}: case id {case.case!r} found twice, in {first.channels[0]} and {case.channels[0]}, "
                "ids that differ in more than capitals expected. Rename one of them."
            )


if __name__ == "__main__":
    errors.run(main)
