"""Rules that need all cases at once: what must not lie in two folds, which labels there are, and who deals the folds.

Folds are dealt here and not in `discover`, for they are balanced by labels and volumes, which are known after the check.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from pipeline.check.case import LABEL, CaseReport
from pipeline.check.problem import Problem, refuse
from pipeline.images import Grid
from pipeline.records import NO_FOLD, Case, Cohort
from pipeline.splits import Volumes, assign_folds


def part_of(case: Case) -> str:
    """Where a case is bound to lie: cases of one part are never on both sides of a training."""
    if case.split == "test":
        return "the test split"
    return f"fold {case.fold}" if case.fold != NO_FOLD else f"the fold of subject {case.subject}"


def same_content(rows: Iterable[Mapping[str, object]], cases: Iterable[Case]) -> list[Problem]:
    """Two cases with one image: in two parts, a model would be tested on what it was trained with."""
    case_of = {case.case: case for case in cases}
    by_content = defaultdict(list)
    for row in rows:
        if row["role"] != LABEL:
            by_content[row["sha256"]].append(row)
    problems = []
    for first, *others in by_content.values():
        for row in others:
            case, file = str(row["case"]), str(row["file"])
            part, other = part_of(case_of[case]), part_of(case_of[str(first["case"])])
            severity, expected = "warn", "an image of its own"
            if part != other:
                severity, expected = "refuse", f"{expected}, not one in {part} and in {other}"
            found = f"the bytes of {first['file']}"
            do = "Drop one of them, or give both cases one subject and one fold."
            problems.append(Problem(severity, "same-content", found, expected, do, case, file))
    return problems


def subject_in_two_folds(cases: Sequence[Case]) -> list[Problem]:
    """Every case that does not lie where the first case of its subject does."""
    first: dict[str, Case] = {}
    problems = []
    for case in cases:
        other = first.setdefault(case.subject, case)
        if part_of(case) != part_of(other):
            found = f"subject {case.subject} in {part_of(case)} and, with {other.case}, in {part_of(other)}"
            do = "Correct the fold or the split of one of them."
            problems.append(Problem("refuse", "subject-in-two-folds", found, "one fold per subject", do, case.case))
    return problems


def folds_incomplete(cases: Sequence[Case], num_folds: int) -> list[Problem]:
    """Folds that were given: all of the training cases have one, and every fold has a case. Says nothing of no case."""
    numbers = Counter(case.fold for case in cases if case.split == "train")
    if set(numbers) in (set(), {NO_FOLD}, set(range(num_folds))):
        return []
    without = numbers.pop(NO_FOLD, 0)
    found = f"folds {', '.join(map(str, sorted(numbers)))} given" + (
        f", {without} cases without one" if without else ""
    )
    expected = f"each of 0 to {num_folds - 1} for some case, and one for each case"
    do = (
        "Set `folds` in config.yaml to their number, counted from 0, and give each training case its fold, or none any."
    )
    return [refuse("folds-incomplete", found, expected, do)]


def labels_in_no_case(reports: Sequence[CaseReport], cohort: Cohort) -> list[Problem]:
    """Says nothing while some label map is refused, for the label may be in that one, nor where no case is left."""
    if not reports:
        return []
    values: set[int] = set()
    for report in reports:
        if report.values is None:
            return []
        values |= report.values
    stated = (
        "config.yaml" if cohort.layout in ("folders", "table") else "config.yaml, or of the cohort's own description,"
    )
    wanted = [(value, name, f"`labels` of {stated}") for value, name in cohort.foreground.items()]
    if cohort.ignore_label is not None:
        wanted.append((cohort.ignore_label, "to be ignored", f"`ignore_label` of {stated}"))
    return [
        refuse(
            "label-in-no-case",
            f"label {value} {name} in no case",
            "in one at least",
            f"Remove it from {place} or correct the label maps.",
        )
        for value, name, place in wanted
        if value not in values
    ]


def label_volumes_ml(report: CaseReport, cohort: Cohort) -> dict[int, float]:
    """Of each label that the case has; none without a sound label map."""
    grid: Grid | None = report.grids.get(LABEL)
    if grid is None:
        return {}
    voxel_ml = float(abs(np.linalg.det(grid.affine[:3, :3]))) / 1000
    counts = report.voxels[LABEL].counts
    return {label: counts[label] * voxel_ml for label in cohort.foreground if counts[label]}


def with_folds(cases: Sequence[Case], volumes: Mapping[str, Volumes], num_folds: int, seed: int) -> list[Case]:
    """The training cases, each in its fold: the one that was given, or one that balances labels and volumes.

    Raises:
        CohortError: fewer subjects than folds.
    """
    training = [case for case in cases if case.split == "train"]
    if any(case.fold != NO_FOLD for case in training):
        return training
    folds = assign_folds(
        [case.subject for case in training], num_folds, seed, [volumes[case.case] for case in training]
    )
    return [replace(case, fold=fold) for case, fold in zip(training, folds, strict=True)]
