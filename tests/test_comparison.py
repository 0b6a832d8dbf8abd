"""Promises of the comparison of configurations: subjects count once, p-values agree with others, absent labels are right."""

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.comparison import Comparison, compare_labels, compare_values, holm, signed_rank
from pipeline.regression import ErrorScore
from tests.test_evaluate import score


def rows_of(rows: list[Comparison], measure: str = "dsc") -> dict[tuple[object, str, str], Comparison]:
    return {(row.label, row.first, row.second): row for row in rows if row.measure == measure}


def test_a_configuration_better_in_every_subject_has_an_effect_of_one() -> None:
    worse = [score(str(case), 1, 0.5 + case / 100, configuration="2d") for case in range(20)]
    better = [score(str(case), 1, 0.6 + case / 90, configuration="3d") for case in range(20)]
    (row,) = rows_of(compare_labels([*worse, *better])).values()
    assert (row.first, row.second, row.n_subjects, row.effect_size) == ("2d", "3d", 20, 1)
    differences = [0.1 + case / 90 - case / 100 for case in range(20)]
    assert row.difference == pytest.approx(np.mean(differences))
    assert row.difference_low is not None and row.difference_high is not None
    assert min(differences) <= row.difference_low < row.difference < row.difference_high <= max(differences)
    assert row.p is not None and row.p == row.p_holm and row.p < 1e-4
    (turned,) = rows_of(compare_labels([*better, *worse])).values()
    assert (turned.effect_size, turned.p) == (-1, row.p)


def test_p_and_effect_agree_with_scipy_and_with_ranks_by_hand() -> None:
    differences = np.array([0.3, -0.1, 0.2, 0.0, 0.5, -0.05])
    effect_size, p = signed_rank(differences)
    assert p == pytest.approx(stats.wilcoxon(differences, zero_method="wilcox").pvalue)
    assert effect_size == pytest.approx((4 + 3 + 5 - 2 - 1) / 15)


def test_without_any_difference_nothing_is_better() -> None:
    assert signed_rank(np.zeros(5)) == (0, 1)


def test_one_subject_tells_nothing_about_another() -> None:
    scores = [score(case, 1, 0.5, subject="s", configuration=name) for name in ("2d", "3d") for case in "ab"]
    (row,) = rows_of(compare_labels(scores)).values()
    assert row.n_subjects == 1
    assert row.effect_size is row.p is row.p_holm is row.difference_low is None


def test_a_subject_counts_once_however_many_scans_it_has() -> None:
    subjects = ["s", "s", "s", "t", "u"]
    scores = [score(str(case), 1, 0.5, subject=one, configuration="2d") for case, one in enumerate(subjects)]
    dsc = [0.6, 0.6, 0.9, 0.4, 0.5]
    scores += [score(str(case), 1, dsc[case], subject=one, configuration="3d") for case, one in enumerate(subjects)]
    (row,) = rows_of(compare_labels(scores)).values()
    assert row.n_subjects == 3
    assert row.difference == pytest.approx((0.2 - 0.1 + 0) / 3)


def test_a_false_positive_counts_against_one_that_rightly_finds_nothing() -> None:
    found = [score("a", 1, 0.8, configuration=name) for name in ("2d", "3d")]
    right, wrong = score("b", 1, None, configuration="2d"), score("b", 1, 0.0, configuration="3d")
    rows = compare_labels([*found, right, wrong])
    assert rows_of(rows)[1, "2d", "3d"].difference == pytest.approx(-0.5)
    assert rows_of(rows, "hd95_worst_mm")[1, "2d", "3d"].difference == pytest.approx(50), "half of the diagonal"
    both_right = score("b", 1, None, configuration="3d")
    assert rows_of(compare_labels([*found, right, both_right]))[1, "2d", "3d"].n_subjects == 1


def test_the_mean_over_labels_is_compared_apart_from_single_labels() -> None:
    rng = np.random.default_rng(0)
    scores = [
        score(str(case), label, float(rng.uniform(0.4, 0.9)), configuration=name)
        for name in ("2d", "3d", "ensemble")
        for case in range(12)
        for label in (1, 2)
    ]
    rows = rows_of(compare_labels(scores))
    assert len(rows) == 3 * 3
    mean, single = ([row for key, row in rows.items() if (key[0] == "mean") is one] for one in (True, False))
    assert [row.p_holm for row in mean] == holm([row.p for row in mean])
    assert [row.p_holm for row in single] == holm([row.p for row in single])
    assert rows["mean", "2d", "3d"].difference == pytest.approx(
        (rows[1, "2d", "3d"].difference + rows[2, "2d", "3d"].difference) / 2
    )


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, None, 0.03, 0.5]) == pytest.approx([0.04, 0.09, None, 0.09, 0.5])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_one_configuration_is_compared_with_none() -> None:
    assert compare_labels([score("a", 1, 0.5), score("b", 1, math.nextafter(0.5, 1))]) == []


def test_errors_of_values_are_compared_too() -> None:
    scores = [
        ErrorScore(name, 0, str(case), "target", "target", "ok", error, 2 * error, 0.0, 0.0, str(case))
        for name, error in (("2d", 3.0), ("3d", 1.0))
        for case in range(4)
    ]
    mae, rmse = compare_values(scores)
    assert (mae.measure, mae.difference, mae.effect_size, mae.n_subjects) == ("mae", -2, -1, 4)
    assert (rmse.measure, rmse.difference) == ("rmse", -4)
