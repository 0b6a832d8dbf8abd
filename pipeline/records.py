"""What the stages write down for each other, as plain TSV and JSON, each file whole or not there at all.

Knows the columns and keys; knows neither how the numbers came about nor where the files lie.
"""

import csv
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.disk import write_text, written_whole
from pipeline.errors import CohortError
from pipeline.regions import painted_values

BACKGROUND = 0
Task = Literal["segmentation", "regression"]
Split = Literal["train", "test"]
NO_FOLD = -1  # an empty cell: nobody gave a fold, so `check` deals it, or a test case, which has none
SKIPS = ("skip", "channels", "dead_channels", "mean_abs", "effect", "verdict")  # columns of skips.tsv
SILENT = 0.01  # relative change of the logits below which a skip connection that is zeroed would not be missed


@dataclass(frozen=True)
class Case:
    """One scan to segment: its channel files in channel order, its label file if it has one, and its fold.

    A case of the test split is never trained with, and has no fold.
    """

    case: str
    subject: str
    fold: int
    label: Path | None
    channels: tuple[Path, ...]
    split: Split = "train"


@dataclass(frozen=True)
class Target:
    """What is segmented and scored: a label, or a region under its name. `painted` stands for it in our masks."""

    label: int | str
    name: str
    values: tuple[int, ...]
    painted: int


@dataclass(frozen=True)
class Cohort:
    """What all cases share: names of the labels (0 is background) and of the channels, e.g. `CT` or `T2`.

    `ignore_label` is the value of voxels that nobody labelled; it is not among `labels`. `regions` are groups of label
    values that may overlap, by name, in the order in which they are painted: if there are any, they are segmented.
    A `task` of regression has an image of values in place of labels: no labels then, and no targets.
    """

    name: str
    layout: str
    labels: dict[int, str]
    channels: dict[int, str]
    ignore_label: int | None = None
    regions: dict[str, list[int]] = field(default_factory=dict)
    task: Task = "segmentation"

    @property
    def is_regression(self) -> bool:
        return self.task == "regression"

    @property
    def declared(self) -> frozenset[int] | None:
        """Every value that a label map may hold; None for any, in a regression."""
        if self.is_regression:
            return None
        return frozenset({*self.labels} if self.ignore_label is None else {*self.labels, self.ignore_label})

    @property
    def foreground(self) -> dict[int, str]:
        return {value: name for value, name in self.labels.items() if value != BACKGROUND}

    @property
    def targets(self) -> list[Target]:
        """Every foreground label, or every region if there are any."""
        if not self.regions:
            return [Target(value, name, (value,), value) for value, name in self.foreground.items()]
        painted = painted_values(list(self.regions.values()))
        return [
            Target(name, name, tuple(values), value)
            for (name, values), value in zip(self.regions.items(), painted, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """What one training did with its budget; `waited_s` of `elapsed_s` went into patches and their augmentation."""

    device: str
    form: str
    width: int
    patch_size: tuple[int, ...]
    batch_size: int
    steps: int
    elapsed_s: float
    waited_s: float
    reason: str
    alarms: tuple[str, ...]

    @property
    def samples_per_second(self) -> float:
        """NaN for a training without a step."""
        return self.steps * self.batch_size / self.elapsed_s if self.elapsed_s else math.nan

    @property
    def data_share(self) -> float:
        """NaN for a training without a step."""
        return self.waited_s / self.elapsed_s if self.elapsed_s else math.nan


def write_json(path: Path, content: Mapping[str, Any], *, is_durable: bool = True) -> None:
    """Indented JSON; NaN and infinity are refused, for other readers cannot parse them."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n", is_durable=is_durable)


def read_json(path: Path) -> dict[str, Any]:
    """
    Raises:
        ValueError: not JSON, or not keys with values.
    """
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__} found, keys with values expected")
    return content


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Tab-separated values under one line of column names; `None` becomes an empty cell."""
    with written_whole(path) as partial, partial.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, columns, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def cells(row: Mapping[str, object]) -> dict[str, object]:
    """A row with its fractions in six digits."""
    return {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}


def aligned(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> list[str]:
    """Lines of a table to be printed, under its column names; `None` becomes an empty cell."""
    table = [[*columns], *(["" if row[column] is None else str(row[column]) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


def write_cases(path: Path, cases: Sequence[Case]) -> None:
    num_channels = max((len(case.channels) for case in cases), default=0)
    columns = ["case", "subject", "split", "fold", "label", *(f"image_{index}" for index in range(num_channels))]
    write_table(path, columns, (_case_row(case) for case in cases))


def _case_row(case: Case) -> dict[str, object]:
    images = {f"image_{index}": channel for index, channel in enumerate(case.channels)}
    fold = None if case.fold == NO_FOLD else case.fold
    return {
        "case": case.case,
        "subject": case.subject,
        "split": case.split,
        "fold": fold,
        "label": case.label,
        **images,
    }


def read_cases(path: Path) -> list[Case]:
    return [_row_case(row) for row in read_table(path)]


def _row_case(row: dict[str, str]) -> Case:
    images = [row[column] for column in sorted(row, key=len) if column.startswith("image_") and row[column]]
    return Case(
        case=row["case"],
        subject=row["subject"],
        fold=int(row["fold"] or NO_FOLD),
        label=Path(row["label"]) if row["label"] else None,
        channels=tuple(Path(image) for image in images),
        split="test" if row["split"] == "test" else "train",
    )


def cases_of_fold(cases: Sequence[Case], fold: int) -> list[Case]:
    return [case for case in cases if case.fold == fold]


def write_cohort(path: Path, cohort: Cohort) -> None:
    write_json(path, asdict(cohort))


def read_cohort(path: Path) -> Cohort:
    content = read_json(path)
    for key in ("labels", "channels"):  # JSON knows text keys only
        content[key] = {int(value): name for value, name in content[key].items()}
    return Cohort(**content)


def left_out(plan: Path) -> str | None:
    """Why the configuration of this plan is not needed; None if it is, or has no plan, or one that is not JSON any more.

    The stage that reads such a plan says so.
    """
    try:
        reason: str | None = read_json(plan).get("left_out") if plan.exists() else None
    except ValueError:
        return None
    return reason


def write_facts(path: Path, facts: TrainingFacts) -> None:
    write_json(path, asdict(facts))


def read_facts(path: Path) -> TrainingFacts:
    content = read_json(path)
    for key in ("patch_size", "alarms"):
        content[key] = tuple(content[key])
    return TrainingFacts(**content)


def sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digests(files: Iterable[Path]) -> dict[Path, str]:
    return {file: sha256(file) for file in files}


def write_file_list(path: Path, files: Mapping[Path, str], *, device: str = "") -> None:
    """The files that a job made, with their digests and what they were computed on, as its one declared output."""
    listed = {str(file): digest for file, digest in files.items()}
    write_json(path, {"device": device, "files": listed} if device else {"files": listed})


def verify_file_list(path: Path) -> None:
    """Read every listed file.

    Raises:
        CohortError: one is missing or has changed since it was written.
    """
    files = {Path(file): digest for file, digest in read_json(path)["files"].items()}
    for file, digest in files.items():
        if not file.exists():
            raise CohortError(f"{file}: missing, yet {path} lists it. Delete {path} so that it is made again.")
        if sha256(file) != digest:
            raise CohortError(f"{file}: changed since {path} was written. Delete {path} so that it is made again.")
