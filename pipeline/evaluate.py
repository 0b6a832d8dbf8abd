"""Masks and references to scores of each label, `metrics.tsv`, their means, `summary.tsv`, and how configurations compare.

What a single measure means is up to `metrics`, how cases are averaged to `summary`, and compared to `comparison`.
Knows nothing of how a mask came about. Imports no torch.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import partial
from pathlib import Path

from pipeline import comparison, errors, records, regression
from pipeline.errors import ConfigError
from pipeline.images import Grid, read_labels_ras, refuse_other_grid
from pipeline.manifest import on_unchanged
from pipeline.metrics import measure, measure_lesions
from pipeline.paths import Results
from pipeline.processes import map_cases
from pipeline.records import Case, Cohort, Target
from pipeline.regression import ErrorScore
from pipeline.summary import SUMMARY_COLUMNS, Score, summarise
from pipeline.targets import per_target

ENSEMBLE = "ensemble"
ALL = "all"
Scores = list[Score | ErrorScore]


@dataclass(frozen=True)
class Wanted:
    """How far surfaces may be apart and still agree; whether they are also measured by voxel edges; whose lesions count."""

    tolerance_mm: float
    has_voxel_edges: bool = False
    lesions: tuple[Target, ...] = ()


def main(results: str, configurations: str, folds: str, settings: str, threads: int = 1) -> None:
    """Score the masks of these folds and configurations (comma-separated); settings is JSON, for `read_wanted`."""
    files = Results(results)
    names = [name for name in configurations.split(",") if not records.left_out(files.plan(name))]
    scored = [int(fold) for fold in folds.split(",")]
    if ENSEMBLE in names:
        records.verify_file_list(files.choice)
    cases = [case for case in records.read_cases(files.checked_cases) if case.fold in scored]
    masks = [{name: files.mask(name, case.case) for name in names} for case in cases]
    cohort = records.read_cohort(files.cohort)
    measure_one = partial(score_case, cohort=cohort, wanted=read_wanted(settings, cohort))
    measure_one = partial(on_unchanged, measure_one, files.manifest, "label")
    of_cases = map_cases(measure_one, cases, masks, processes=threads, desc="evaluate")
    scores = [score for of_case in of_cases for score in of_case]
    scores.sort(key=lambda score: names.index(score.configuration))
    refused = {row["case"] for row in records.read_table(files.problems) if row["severity"] == "refuse"}
    write_tables(files.metrics, files.summary, scores, num_dropped=len(refused))
    write_comparison(files.comparison, scores)


def read_wanted(settings: str, cohort: Cohort) -> Wanted:
    """From JSON: `tolerance_mm`; `voxel_edges` and `lesions` where they are wanted, the latter `all` or some labels or regions.

    Raises:
        ConfigError: lesions of a label that the cohort does not have.
    """
    content = json.loads(settings)
    asked, targets = content.get("lesions", []), {str(target.label): target for target in cohort.targets}
    labels = [*targets] if asked == ALL else [str(label) for label in asked]
    if unknown := [label for label in labels if label not in targets]:
        known = ", ".join(f"{label} ({target.name})" for label, target in targets.items())
        raise ConfigError(f"evaluate.lesions: {', '.join(unknown)} is none of the cohort's labels or regions, {known}.")
    return Wanted(content["tolerance_mm"], content.get("voxel_edges", False), tuple(targets[label] for label in labels))


def score_case(case: Case, masks: Mapping[str, Path], *, cohort: Cohort, wanted: Wanted) -> Scores:
    """The measures of one labelled case by what the cohort's task is."""
    if cohort.is_regression:
        return [*regression.measure_case(case, masks)]
    return [*measure_case(case, masks, cohort=cohort, wanted=wanted)]


def write_tables(metrics: Path, summary: Path, scores: Scores, num_dropped: int = 0) -> None:
    """Every score to `metrics`, their means to `summary`; all scores are of one task, and there is one at least.

    Args:
        num_dropped: cases that `check` refused, which nothing here knows of.
    """
    errors_of_values = [score for score in scores if isinstance(score, ErrorScore)]
    of_labels = [score for score in scores if isinstance(score, Score)]
    # what was not asked for has no value anywhere, and no column
    columns = [
        field.name
        for field in fields(scores[0])
        if field.default is MISSING or any(getattr(score, field.name) is not None for score in scores)
    ]
    rows_of_cases = [{name: getattr(score, name) for name in columns} for score in scores]
    records.write_table(metrics, columns, map(records.cells, rows_of_cases))
    if errors_of_values:
        rows, columns = regression.summarise(errors_of_values), [*regression.SUMMARY_COLUMNS]
    else:
        rows, columns = summarise(of_labels), [*SUMMARY_COLUMNS]
        columns = [one for one in columns if one == "n_dropped" or any(one in row for row in rows)]
    records.write_table(summary, columns, [records.cells(row | {"n_dropped": num_dropped}) for row in rows])


def write_comparison(path: Path, scores: Scores) -> None:
    """Every pair of configurations; only column names where there is one configuration."""
    rows = comparison.compare_labels([score for score in scores if isinstance(score, Score)])
    rows += comparison.compare_values([score for score in scores if isinstance(score, ErrorScore)])
    records.write_table(path, comparison.COLUMNS, (records.cells(asdict(row)) for row in rows))


def measure_case(case: Case, masks: Mapping[str, Path], *, cohort: Cohort, wanted: Wanted) -> list[Score]:
    """Score one labelled case, of the cohort or a new scan. Where the reference has the ignore label, all is background.

    Args:
        masks: per configuration the predicted mask.
    Returns:
        One score per mask and label, or region if there are any, in the order of both.
    Raises:
        ImageError: a file cannot be read, or a mask does not lie on the grid of the reference.
    """
    assert case.label is not None, case
    reference, grid = read_labels_ras(case.label)
    look = partial(
        measure,
        spacing_mm=grid.spacing_mm,
        tolerance_mm=wanted.tolerance_mm,
        has_voxel_edges=wanted.has_voxel_edges,
    )
    scores = []
    for configuration, path in masks.items():
        prediction, found = read_labels_ras(path)
        refuse_other_grid(path, found, case.label, grid)
        of_labels = per_target(look, reference, prediction, cohort, cohort.targets)
        of_lesions = per_target(measure_lesions, reference, prediction, cohort, wanted.lesions)
        lesions = {target: asdict(one) for target, one in zip(wanted.lesions, of_lesions, strict=True)}
        scores += [
            Score(
                configuration=configuration,
                fold=case.fold,
                case=case.case,
                subject=case.subject,
                name=target.name,
                tolerance_mm=wanted.tolerance_mm,
                diagonal_mm=_diagonal_mm(grid),
                **{**asdict(measured), "label": target.label, **lesions.get(target, {})},
            )
            for target, measured in zip(cohort.targets, of_labels, strict=True)
        ]
    return scores


def _diagonal_mm(grid: Grid) -> float:
    return math.hypot(*(size * mm for size, mm in zip(grid.shape, grid.spacing_mm, strict=True)))


if __name__ == "__main__":
    errors.run(main)
