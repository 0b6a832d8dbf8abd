"""Masks and references to scores of each label, `metrics.tsv`, and their means with intervals, `summary.tsv`.

Owner of how cases are averaged and how sure the averages are; what a single measure means is up to `metrics`.
Knows nothing of how a mask came about. Imports no torch.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
from tqdm.contrib.concurrent import process_map

from pipeline import errors, records, regression
from pipeline.bootstrap import INTERVAL_PERCENT, SEED, PerCase, draw_cases, means
from pipeline.images import Grid, read_labels_ras, refuse_other_grid
from pipeline.manifest import on_unchanged
from pipeline.metrics import Status, measure
from pipeline.paths import Results
from pipeline.records import Case, Cohort
from pipeline.regression import ErrorScore
from pipeline.targets import per_target

ENSEMBLE = "ensemble"
MEAN = "mean"  # stands for a label in the row over all labels


@dataclass(frozen=True)
class Score:
    """One row of `metrics.tsv`: how one label, or region under its name, of one case came out in one configuration."""

    configuration: str
    fold: int
    case: str
    label: int | str
    name: str
    status: Status
    dsc: float | None
    nsd: float | None
    tolerance_mm: float
    hd95_mm: float | None
    hd_mm: float | None
    assd_mm: float | None
    reference_ml: float
    prediction_ml: float
    volume_difference_ml: float
    diagonal_mm: float  # of the scan: stands for an infinite distance
    subject: str


Scores = list[Score | ErrorScore]
WITH_INTERVAL = ("dsc", "nsd")
DISTANCES = ("hd95", "hd", "assd")
MEASURES = (
    *WITH_INTERVAL,
    *(f"{distance}{end}_mm" for distance in DISTANCES for end in ("", "_worst")),
    *("volume_difference_ml", "volume_difference_abs_ml"),
)
COUNTS = {"n_missed": "missed", "n_false_positive": "false_positive", "n_absent_ok": "absent_ok"}
SUMMARY_COLUMNS = (
    *("configuration", "label", "name", "n", "n_dropped", "n_used", *COUNTS, "tolerance_mm"),
    *(f"{measure}{end}" for measure in WITH_INTERVAL for end in ("", "_low", "_high")),
    *(measure for measure in MEASURES if measure not in WITH_INTERVAL),
)


def main(results: str, configurations: str, folds: str, settings: str, threads: int = 1) -> None:
    """Score the masks of these folds and configurations (comma-separated); settings is JSON: tolerance_mm."""
    files = Results(results)
    names = [name for name in configurations.split(",") if not records.left_out(files.plan(name))]
    wanted = [int(fold) for fold in folds.split(",")]
    if ENSEMBLE in names:
        records.verify_file_list(files.choice)
    cases = [case for case in records.read_cases(files.checked_cases) if case.fold in wanted]
    masks = [{name: files.mask(name, case.case) for name in names} for case in cases]
    measure_one = partial(
        score_case, cohort=records.read_cohort(files.cohort), tolerance_mm=json.loads(settings)["tolerance_mm"]
    )
    measure_one = partial(on_unchanged, measure_one, files.manifest, "label")
    of_cases = process_map(measure_one, cases, masks, max_workers=threads, chunksize=1, desc="evaluate", mininterval=1)
    scores = [score for of_case in of_cases for score in of_case]
    scores.sort(key=lambda score: names.index(score.configuration))
    refused = {row["case"] for row in records.read_table(files.problems) if row["severity"] == "refuse"}
    write_tables(files.metrics, files.summary, scores, num_dropped=len(refused))


def score_case(case: Case, masks: Mapping[str, Path], *, cohort: Cohort, tolerance_mm: float) -> Scores:
    """The measures of one labelled case by what the cohort's task is."""
    if cohort.is_regression:
        return [*regression.measure_case(case, masks)]
    return [*measure_case(case, masks, cohort=cohort, tolerance_mm=tolerance_mm)]


def write_tables(metrics: Path, summary: Path, scores: Scores, num_dropped: int = 0) -> None:
    """Every score to `metrics`, their means to `summary`; all scores are of one task, and there is one at least.

    Args:
        num_dropped: cases that `check` refused, which nothing here knows of.
    """
    errors_of_values = [score for score in scores if isinstance(score, ErrorScore)]
    of_labels = [score for score in scores if isinstance(score, Score)]
    columns = [field.name for field in fields(scores[0])]
    records.write_table(metrics, columns, [records.cells(asdict(score)) for score in scores])
    if errors_of_values:
        rows, columns = regression.summarise(errors_of_values), [*regression.SUMMARY_COLUMNS]
    else:
        rows, columns = summarise(of_labels), [*SUMMARY_COLUMNS]
    records.write_table(summary, columns, [records.cells(row | {"n_dropped": num_dropped}) for row in rows])


def measure_case(case: Case, masks: Mapping[str, Path], *, cohort: Cohort, tolerance_mm: float) -> list[Score]:
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
    scores = []
    for configuration, path in masks.items():
        prediction, found = read_labels_ras(path)
        refuse_other_grid(path, found, case.label, grid)
        look = partial(measure, spacing_mm=grid.spacing_mm, tolerance_mm=tolerance_mm)
        scores += [
            Score(
                configuration=configuration,
                fold=case.fold,
                case=case.case,
                subject=case.subject,
                name=target.name,
                tolerance_mm=tolerance_mm,
                diagonal_mm=_diagonal_mm(grid),
                **{**asdict(measured), "label": target.label},
            )
            for target, measured in zip(cohort.targets, per_target(look, reference, prediction, cohort), strict=True)
        ]
    return scores


def _diagonal_mm(grid: Grid) -> float:
    return math.hypot(*(size * mm for size, mm in zip(grid.shape, grid.spacing_mm, strict=True)))


def summarise(scores: Sequence[Score], *, seed: int = SEED) -> list[dict[str, object]]:
    """Means over cases: one row per configuration and label, then one over all labels of the configuration.

    A case without a value (label absent in both masks) is left out of a mean. A missed or invented label
    counts: dsc and nsd 0, distances infinite, which `hd95_mm` leaves out and `hd95_worst_mm` replaces by the
    diagonal of the scan. A mean of nothing is None. The row over all labels is the mean of the labels' means;
    its counts are sums: pairs of case and label.

    Intervals: 95 % percentile bootstrap over subjects, the same draws for all labels and configurations; None
    where fewer than two subjects have a value.
    """
    rows: list[dict[str, object]] = []
    for configuration in dict.fromkeys(score.configuration for score in scores):
        rows += _summarise_one([score for score in scores if score.configuration == configuration], seed)
    return rows


def _summarise_one(scores: Sequence[Score], seed: int) -> list[dict[str, object]]:
    cases = {score.case: score.subject for score in scores}
    labels = {score.label: score.name for score in scores}
    groups: list[tuple[int | str, str, Sequence[Score]]] = [
        *((label, name, [one for one in scores if one.label == label]) for label, name in labels.items()),
        (MEAN, "all labels", scores),
    ]
    shared = {"configuration": scores[0].configuration, "tolerance_mm": scores[0].tolerance_mm}
    rows = [{**shared, "label": label, "name": name, **_counts(group)} for label, name, group in groups]
    once, resamples = np.ones(len(cases)), draw_cases(list(cases.values()), seed=seed)
    all_values = {(score.case, score.label): _values(score) for score in scores}
    for measure_name in MEASURES:
        table = [[all_values[case, label][measure_name] for label in labels] for case in cases]
        values: PerCase = np.array(table, dtype=np.float64)  # None becomes NaN
        for row, mean in zip(rows, means(values, once), strict=True):
            row[measure_name] = None if math.isnan(mean) else float(mean)
        if measure_name in WITH_INTERVAL:
            for row, draws, (_, _, group) in zip(rows, means(values, resamples).T, groups, strict=True):
                has_spread = _num_subjects(group) >= 2
                low, high = np.nanpercentile(draws, INTERVAL_PERCENT).tolist() if has_spread else (None, None)
                row |= {f"{measure_name}_low": low, f"{measure_name}_high": high}
    return rows


def _counts(scores: Sequence[Score]) -> dict[str, int]:
    counts = {column: sum(score.status == status for score in scores) for column, status in COUNTS.items()}
    return {"n": len(scores), "n_used": len(scores) - counts["n_absent_ok"], **counts}


def _num_subjects(scores: Sequence[Score]) -> int:
    return len({score.subject for score in scores if score.status != "absent_ok"})


def _values(score: Score) -> dict[str, float | None]:
    """What the summary averages, by its column."""
    values = {"dsc": score.dsc, "nsd": score.nsd}
    for name in DISTANCES:
        distance_mm = getattr(score, f"{name}_mm")
        is_infinite = distance_mm is not None and math.isinf(distance_mm)
        values[f"{name}_mm"] = None if is_infinite else distance_mm
        values[f"{name}_worst_mm"] = score.diagonal_mm if is_infinite else distance_mm
    difference_ml = score.volume_difference_ml
    return {**values, "volume_difference_ml": difference_ml, "volume_difference_abs_ml": abs(difference_ml)}


if __name__ == "__main__":
    errors.run(main)
