"""Configurations compared in pairs on the same subjects: `comparison.tsv`. How sure it is that one is better than another.

A subject counts once, however many scans it has: by the mean over its scans. Knows neither files nor what a measure means.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from pipeline.bootstrap import INTERVAL_PERCENT, SEED, PerCase, draw_cases
from pipeline.regression import MEASURES as ERRORS
from pipeline.regression import TARGET, ErrorScore
from pipeline.summary import MEAN, Score, values_of

BEST = {"dsc": 1.0, "nsd": 1.0, "hd95_worst_mm": 0.0}  # what a label that is rightly absent stands for
DECIMALS = 12  # sums in another order differ in the last digits, and are no difference

Differences = NDArray[np.float64]  # (S,) one per subject, second configuration minus first


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row: two configurations, one measure of one label, or of the mean over labels.

    `difference` is second minus first, mean over subjects, with its 95 % bootstrap interval; `effect_size` the rank-biserial
    correlation, from -1, all subjects higher in the first, to 1, all higher in the second; `p` of the Wilcoxon signed-rank
    test; `p_holm` corrected by Holm for all rows of the measure that are about single labels, or all about the mean. With
    fewer than two subjects there is nothing but the difference, with none not even that.
    """

    measure: str
    label: int | str
    name: str
    first: str
    second: str
    n_subjects: int
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    effect_size: float | None
    p: float | None
    p_holm: float | None


COLUMNS = tuple(field.name for field in fields(Comparison))


def compare_labels(scores: Sequence[Score]) -> list[Comparison]:
    """Of every measure in `BEST`; a label that both configurations rightly left out of a case is no difference there.

    One that only one of them left out counts as right: the other one's false positive is not for free.
    """
    labels = {score.label: score.name for score in scores}
    rows: list[Comparison] = []
    for measure, best in BEST.items():
        tables = _tables(scores, {(one.configuration, one.case, one.label): values_of(one)[measure] for one in scores})
        of_pairs = []
        for (first, one), (second, other) in combinations(tables.items(), 2):
            is_absent = np.isnan(one) & np.isnan(other)
            differences = np.where(is_absent, np.nan, np.nan_to_num(other, nan=best) - np.nan_to_num(one, nan=best))
            of_pairs.append((first, second, differences))
        rows += _compare(measure, of_pairs, labels, _subjects(scores))
    return rows


def compare_values(scores: Sequence[ErrorScore]) -> list[Comparison]:
    """Of the errors of a regression."""
    rows: list[Comparison] = []
    for measure in ERRORS:
        tables = _tables(scores, {(one.configuration, one.case, one.label): getattr(one, measure) for one in scores})
        pairs = combinations(tables.items(), 2)
        of_pairs = [(first, second, other - one) for (first, one), (second, other) in pairs]
        rows += _compare(measure, of_pairs, {TARGET: TARGET}, _subjects(scores))
    return rows


def _subjects(scores: Sequence[Score] | Sequence[ErrorScore]) -> list[str]:
    return [*{score.case: score.subject for score in scores}.values()]


def _tables(
    scores: Sequence[Score] | Sequence[ErrorScore], values: Mapping[tuple[str, str, int | str], float | None]
) -> dict[str, PerCase]:
    """By configuration one row per case and one column per label; NaN where there is no value."""
    cases, labels = dict.fromkeys(one.case for one in scores), dict.fromkeys(one.label for one in scores)
    return {
        name: np.array([[values[name, case, label] for label in labels] for case in cases], np.float64)
        for name in dict.fromkeys(one.configuration for one in scores)
    }


def _compare(
    measure: str,
    of_pairs: Sequence[tuple[str, str, PerCase]],
    labels: Mapping[int | str, str],
    subjects: Sequence[str],
) -> list[Comparison]:
    """The mean over labels first, if there are several."""
    mean, single = [], []
    for first, second, differences in of_pairs:
        if len(labels) > 1:
            own = _of_subjects(differences, subjects)
            mean.append(_compare_one(measure, MEAN, "all labels", first, second, own))
        for column, (label, name) in enumerate(labels.items()):
            own = _of_subjects(differences[:, [column]], subjects)
            single.append(_compare_one(measure, label, name, first, second, own))
    return [*_corrected(mean), *_corrected(single)]


def _compare_one(
    measure: str, label: int | str, name: str, first: str, second: str, differences: Differences
) -> Comparison:
    effect_size, p = signed_rank(differences)
    low, high = _interval(differences)
    return Comparison(
        measure=measure,
        label=label,
        name=name,
        first=first,
        second=second,
        n_subjects=differences.size,
        difference=float(differences.mean()) if differences.size else None,
        difference_low=low,
        difference_high=high,
        effect_size=effect_size,
        p=p,
        p_holm=None,
    )


def _corrected(family: Sequence[Comparison]) -> list[Comparison]:
    corrected = holm([row.p for row in family])
    return [replace(row, p_holm=p_holm) for row, p_holm in zip(family, corrected, strict=True)]


def _of_subjects(differences: PerCase, subjects: Sequence[str]) -> Differences:
    """Mean over the labels of a case, then over the cases of a subject; without those that have no value."""
    has_value = ~np.isnan(differences)
    is_used = has_value.any(axis=1)
    of_cases = np.where(has_value, differences, 0).sum(axis=1)[is_used] / has_value.sum(axis=1)[is_used]
    names, place = np.unique(np.array(subjects)[is_used], return_inverse=True)
    sums, counts = np.bincount(place, of_cases, len(names)), np.bincount(place, minlength=len(names))
    return np.round(sums / counts, DECIMALS)


def signed_rank(differences: Differences) -> tuple[float | None, float | None]:
    """Effect size and p of subjects; without any difference 0 and 1, of fewer than two subjects None."""
    from scipy import stats  # takes half a second, which only the stage that compares should spend

    if differences.size < 2:
        return None, None
    differing = differences[differences != 0]
    if not differing.size:
        return 0.0, 1.0
    ranks = stats.rankdata(np.abs(differing))
    effect_size = float((np.sign(differing) * ranks).sum() / ranks.sum())
    return effect_size, float(stats.wilcoxon(differing).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Each p times how many are no smaller, at most 1 and no smaller than that of a smaller p; None stays out of it."""
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        corrected[place] = highest
    return corrected


def _interval(differences: Differences) -> tuple[float | None, float | None]:
    num_subjects = differences.size
    if num_subjects < 2:
        return None, None
    draws = draw_cases([str(place) for place in range(num_subjects)], seed=SEED) @ differences / num_subjects
    low, high = np.percentile(draws, INTERVAL_PERCENT).tolist()
    return low, high
