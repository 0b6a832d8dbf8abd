"""What every layout is asked for and gives: names, cases, and the one meaning of a case id, wherever it was written.

Knows names only; which of them are there, and what the files hold, is for others to say.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import CohortError
from pipeline.records import BACKGROUND, Case, Cohort, Task

Names = Mapping[str, str]  # by label value or channel index as text
CASE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SESSION = re.compile(r"(?P<subject>.+)_ses-[A-Za-z0-9]+")
CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What config.yaml says of the cohort, which wins over what the cohort says of itself.

    `labels` by value and `channels` by index are names, further values are added. `ignore_label` is the value of voxels
    that nobody labelled, declared or not. In a regression label files hold values, and no label is declared.
    """

    labels: Names = field(default_factory=dict)
    channels: Names = field(default_factory=dict)
    ignore_label: int | None = None
    regions: Mapping[str, list[int]] = field(default_factory=dict)
    task: Task = "segmentation"


@dataclass(frozen=True)
class Found:
    """The cohort and its cases, sorted by id, each with the fold that the cohort gives it, if it does."""

    cohort: Cohort
    cases: list[Case]


def subject_of(case: str) -> str:
    """The person whose scan this is, where nothing else says so: `sub-01_ses-02` is of `sub-01`, as BIDS writes it."""
    split = SESSION.fullmatch(case)
    return split["subject"] if split else case


def sorted_cases(source: Path, cases: Iterable[Case]) -> list[Case]:
    """
    Args:
        source: what the cases were read from, for the message.

    Raises:
        CohortError: no case, an id that is none, or one that is there twice.
    """
    by_id: dict[str, Case] = {}
    for case in cases:
        if not CASE_ID.fullmatch(case.case):
            raise CohortError(
                f"{source}: case id {case.case!r} found, 1 to 64 letters, digits, '.', '_' or '-', the first a "
                f"letter or digit, expected. Rename {str(case.channels[0])!r}."
            )
        if (first := by_id.setdefault(case.case.casefold(), case)) is not case:
            raise CohortError(
                f"{source}: case id {case.case!r} found twice, in {first.channels[0]} and {case.channels[0]}, "
                "ids that differ in more than capitals expected. Rename one of them."
            )
    if not by_id:
        raise CohortError(f"{source}: no case found, one scan with its label at least expected. Correct `cohort:`.")
    return sorted(by_id.values(), key=lambda case: case.case)


def named_labels(source: Path, declared: Mapping[int, str], wanted: Wanted) -> dict[int, str]:
    """Names by value, with the background and without the value to be ignored; none in a regression.

    Raises:
        CohortError: nothing to segment.
    """
    if wanted.task == "regression":
        return {}
    names = {BACKGROUND: "background", **declared, **{int(value): name for value, name in wanted.labels.items()}}
    names = {value: name for value, name in names.items() if value != wanted.ignore_label}
    if len(names) == 1 or min(names) < 0:
        found = ", ".join(map(str, sorted(names)))
        raise CohortError(
            f"{source}: labels {found} found, 0 and at least one above it expected. Correct them there, or name them "
            "in config.yaml, as in `labels: {1: liver}`."
        )
    return dict(sorted(names.items()))


def channels_of_config(source: Path, wanted: Wanted) -> dict[int, str]:
    """The channels of a layout that has no place for their names.

    Raises:
        CohortError: none declared, or not numbered from 0.
    """
    if set(wanted.channels) != set(map(str, range(len(wanted.channels)))) or not wanted.channels:
        raise CohortError(
            f"{source}: `channels` of config.yaml is {dict(wanted.channels)}, a name for every channel from 0 on expected, "
            "for nothing else tells CT from MR. Add it, as in `channels: {0: CT}`."
        )
    return {index: wanted.channels[str(index)] for index in range(len(wanted.channels))}


def cohort_of_config(source: Path, name: str, layout: str, wanted: Wanted) -> Cohort:
    """The cohort of a layout that has no place for names: config.yaml has all of them.

    Raises:
        CohortError: no label or no channel is named.
    """
    return Cohort(
        name=name,
        layout=layout,
        labels=named_labels(source, {}, wanted),
        channels=channels_of_config(source, wanted),
        ignore_label=wanted.ignore_label,
        regions=dict(wanted.regions),
        task=wanted.task,
    )


def renamed_channels(source: Path, declared: Sequence[str], wanted: Wanted) -> dict[int, str]:
    """Names by index.

    Raises:
        CohortError: config.yaml names a channel that the cohort does not have.
    """
    known = [str(index) for index in range(len(declared))]
    if unknown := ", ".join(sorted(set(wanted.channels) - set(known))):
        raise CohortError(
            f"{source}: channel {unknown} of `channels` in config.yaml not found, one of {', '.join(known)} "
            "expected. Remove it there or declare it here."
        )
    return {index: wanted.channels.get(str(index), name) for index, name in enumerate(declared)}
