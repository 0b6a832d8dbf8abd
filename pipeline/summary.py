"""Scores of cases to their means with intervals and every n, `summary.tsv`: how cases are averaged, how sure the averages are.

Knows neither files nor what a single measure means.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.bootstrap import INTERVAL_PERCENT, SEED, PerCase, draw_cases, means
from pipeline.metrics import Status

MEAN = "mean"  # stands for a label in the row over all labels


@dataclass(frozen=True, kw_only=True)
class Score:
    """One row of `metrics.tsv`: how one label, or region under its name, of one case came out in one configuration.

    What has a default is measured only if asked for.
    """

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
    volume_difference_relative: float | None
    iou: float | None
    sensitivity: float | None
    precision: float | None
    nsd_voxel: float | None = None
    hd95_voxel_mm: float | None = None
    hd95_voxel_pooled_mm: float | None = None
    lesion_tp: int | None = None
    lesion_fp: int | None = None
    lesion_fn: int | None = None
    lesion_sensitivity: float | None = None
    lesion_precision: float | None = None
    lesion_f1: float | None = None
    sq: float | None = None
    pq: float | None = None
    diagonal_mm: float  # of the scan: stands for an infinite distance
    subject: str


SHARES = ("dsc", "nsd", "iou", "sensitivity", "precision")
DISTANCES = ("hd95", "hd", "assd")
VOXEL_DISTANCES = ("hd95_voxel", "hd95_voxel_pooled")
LESION_COUNTS = ("lesion_tp", "lesion_fp", "lesion_fn")
LESION_SHARES = ("lesion_sensitivity", "lesion_precision", "lesion_f1", "sq", "pq")
ON_REQUEST = (
    "nsd_voxel",
    *(f"{distance}{end}_mm" for distance in VOXEL_DISTANCES for end in ("", "_worst")),
    *(*LESION_SHARES, "lesion_fp_per_case"),
)
MEASURES = (
    *SHARES,
    *(f"{distance}{end}_mm" for distance in DISTANCES for end in ("", "_worst")),
    *("volume_difference_ml", "volume_difference_abs_ml"),
    *("volume_difference_relative", "volume_difference_abs_relative"),
    *ON_REQUEST,
)
WITH_INTERVAL = ("dsc", "nsd", "hd95_worst_mm", "lesion_f1", "pq")  # what a report may lead with
COUNTS = {"n_missed": "missed", "n_false_positive": "false_positive", "n_absent_ok": "absent_ok"}
SUMMARY_COLUMNS = (
    *("configuration", "label", "name", "n", "n_dropped", "n_used", "n_subjects", *COUNTS, "tolerance_mm"),
    *(
        f"{measure}{end}"
        for measure in MEASURES
        for end in ("", "_low", "_high")[: 3 if measure in WITH_INTERVAL else 1]
    ),
    *LESION_COUNTS,
)


def summarise(scores: Sequence[Score], *, seed: int = SEED) -> list[dict[str, object]]:
    """Means over cases: one row per configuration and label, then one over all labels of the configuration.

    A case without a value (label absent in both masks) is left out of a mean. A missed or invented label
    counts: shares 0, distances infinite, which `hd95_mm` leaves out and `hd95_worst_mm` replaces by the
    diagonal of the scan. A mean of nothing is None. The row over all labels is the mean of the labels' means;
    its counts are sums: pairs of case and label. `lesion_tp` and the like are sums too.

    Intervals: 95 % percentile bootstrap over subjects, the same draws for all labels and configurations; None
    where fewer than two subjects have a value. What was not asked for in any score is in no row.
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
    all_values = {(score.case, score.label): values_of(score) for score in scores}
    for measure in MEASURES:
        table = [[all_values[case, label][measure] for label in labels] for case in cases]
        values: PerCase = np.array(table, dtype=np.float64)  # None becomes NaN
        has_value = np.isfinite(values)
        if measure in ON_REQUEST and not has_value.any():
            continue
        for row, mean in zip(rows, means(values, once), strict=True):
            row[measure] = None if math.isnan(mean) else float(mean)
        if measure in WITH_INTERVAL:
            has_values = [*has_value.T, has_value.any(axis=1)]
            for row, draws, has in zip(rows, means(values, resamples).T, has_values, strict=True):
                num_subjects = len({subject for subject, one in zip(cases.values(), has, strict=True) if one})
                low, high = np.nanpercentile(draws, INTERVAL_PERCENT).tolist() if num_subjects >= 2 else (None, None)
                row |= {f"{measure}_low": low, f"{measure}_high": high}
    return rows


def _counts(scores: Sequence[Score]) -> dict[str, int]:
    counts = {column: sum(score.status == status for score in scores) for column, status in COUNTS.items()}
    used = [score for score in scores if score.status != "absent_ok"]
    num_subjects = len({score.subject for score in used})
    asked = [score for score in scores if score.lesion_tp is not None]
    sums = {column: sum(getattr(score, column) for score in asked) for column in LESION_COUNTS if asked}
    return {"n": len(scores), "n_used": len(used), "n_subjects": num_subjects, **counts, **sums}


def values_of(score: Score) -> dict[str, float | None]:
    """What is averaged over cases, by its column."""
    values = {name: getattr(score, name) for name in (*SHARES, "nsd_voxel", *LESION_SHARES)}
    for name in (*DISTANCES, *VOXEL_DISTANCES):
        distance_mm = getattr(score, f"{name}_mm")
        is_infinite = distance_mm is not None and math.isinf(distance_mm)
        values[f"{name}_mm"] = None if is_infinite else distance_mm
        values[f"{name}_worst_mm"] = score.diagonal_mm if is_infinite else distance_mm
    difference_ml, relative = score.volume_difference_ml, score.volume_difference_relative
    return {
        **values,
        "volume_difference_ml": difference_ml,
        "volume_difference_abs_ml": abs(difference_ml),
        "volume_difference_relative": relative,
        "volume_difference_abs_relative": None if relative is None else abs(relative),
        "lesion_fp_per_case": score.lesion_fp,
    }
