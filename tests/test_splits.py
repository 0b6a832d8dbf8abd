"""Folds: no subject in two, balanced, and the same whatever the order of the cases."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import CohortError
from pipeline.splits import Volumes, assign_folds

SEEDS = st.integers(0, 2**32)


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[list[str], int]:
    """The subject of every case, shuffled, and a number of folds that is not too large."""
    num_cases = draw(st.dictionaries(st.text(min_size=1), st.integers(1, 6), min_size=2, max_size=30))
    subjects = draw(st.permutations([subject for subject, count in num_cases.items() for _ in range(count)]))
    return list(subjects), draw(st.integers(2, min(10, len(num_cases))))


def labels_of(subjects: list[str], rng: random.Random) -> list[Volumes]:
    """Of each case some of three labels, with volumes that differ a thousandfold."""
    return [{label: 10 ** rng.uniform(0, 3) for label in (1, 2, 7) if rng.random() < 0.6} for _ in subjects]


@given(cohorts(), SEEDS, st.randoms(use_true_random=False))
def test_no_subject_is_in_two_folds(cohort: tuple[list[str], int], seed: int, rng: random.Random) -> None:
    subjects, num_folds = cohort
    folds = assign_folds(subjects, num_folds, seed, labels_of(subjects, rng))
    assert len(set(zip(subjects, folds, strict=True))) == len(set(subjects))


@given(cohorts(), SEEDS, st.randoms(use_true_random=False))
def test_fold_sizes_differ_by_the_largest_subject_at_most(
    cohort: tuple[list[str], int], seed: int, rng: random.Random
) -> None:
    subjects, num_folds = cohort
    folds = assign_folds(subjects, num_folds, seed, labels_of(subjects, rng))
    sizes = [folds.count(fold) for fold in range(num_folds)]
    assert sum(sizes) == len(subjects)
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= max(subjects.count(subject) for subject in subjects)


@given(cohorts(), SEEDS, st.randoms(use_true_random=False))
def test_the_order_of_the_cases_does_not_matter(cohort: tuple[list[str], int], seed: int, rng: random.Random) -> None:
    subjects, num_folds = cohort
    cases = list(zip(subjects, labels_of(subjects, rng), strict=True))
    fold_of = dict(zip(subjects, assign_folds(subjects, num_folds, seed, [own for _, own in cases]), strict=True))
    rng.shuffle(cases)
    again = assign_folds([subject for subject, _ in cases], num_folds, seed, [own for _, own in cases])
    assert again == [fold_of[subject] for subject, _ in cases]


@given(st.lists(st.floats(0.01, 1000), min_size=5, max_size=60), st.integers(2, 5), SEEDS)
def test_volumes_of_folds_differ_by_the_largest_case_at_most(sizes: list[float], num_folds: int, seed: int) -> None:
    subjects = [f"s{number}" for number in range(len(sizes))]
    folds = assign_folds(subjects, num_folds, seed, [{1: size} for size in sizes])
    totals = [
        math.fsum(size for size, own in zip(sizes, folds, strict=True) if own == fold) for fold in range(num_folds)
    ]
    assert max(totals) - min(totals) <= max(sizes) * (1 + 1e-9)


@given(st.integers(4, 40), st.integers(1, 20), st.integers(2, 5), SEEDS)
def test_a_rare_label_is_spread_over_as_many_folds_as_it_has_cases(
    num_cases: int, num_rare: int, num_folds: int, seed: int
) -> None:
    subjects = [f"s{number}" for number in range(max(num_cases, num_folds, num_rare))]
    volumes: list[Volumes] = [{1: 5.0, 2: float(number < num_rare)} for number in range(len(subjects))]
    folds = assign_folds(subjects, num_folds, seed, volumes)
    with_rare = [folds[:num_rare].count(fold) for fold in range(num_folds)]
    assert max(with_rare) - min(with_rare) <= 1


def test_every_label_has_its_own_balance_of_volumes() -> None:
    rng = random.Random(0)
    subjects = [f"s{number}" for number in range(200)]
    volumes: list[Volumes] = [{1: rng.gauss(1000, 200), 2: rng.gauss(10, 3)} for _ in subjects]
    folds = assign_folds(subjects, 5, 12345, volumes)
    for label in (1, 2):
        means = [
            sum(own[label] for own, one in zip(volumes, folds, strict=True) if one == fold) / 40 for fold in range(5)
        ]
        assert max(means) < 1.03 * min(means)


def test_two_rare_labels_of_other_cases_are_both_spread() -> None:
    subjects = [f"s{number}" for number in range(30)]
    volumes: list[Volumes] = [
        {1: 9.0, 2: float(number in range(3)), 3: float(number in range(3, 6))} for number in range(30)
    ]
    folds = assign_folds(subjects, 3, 12345, volumes)
    assert sorted(folds[:3]) == sorted(folds[3:6]) == [0, 1, 2]


def test_another_seed_gives_other_folds() -> None:
    subjects = [f"s{number}" for number in range(40)]
    volumes = [{1: float(number)} for number in range(40)]
    assert assign_folds(subjects, 5, 1) != assign_folds(subjects, 5, 2)
    assert assign_folds(subjects, 5, 1, volumes) != assign_folds(subjects, 5, 2, volumes)


def test_a_seed_gives_these_folds_on_every_machine() -> None:
    subjects = ["a", "b", "c", "d", "e", "a"]
    assert assign_folds(subjects, 3, 12345) == [2, 0, 0, 1, 1, 2]
    volumes: list[Volumes] = [{1: 2.0}, {1: 1.0}, {}, {1: 1.5, 2: 0.1}, {2: 0.2}, {}]
    assert assign_folds(subjects, 3, 12345, volumes) == [2, 0, 1, 1, 0, 2]


def test_fewer_subjects_than_folds_are_refused() -> None:
    with pytest.raises(CohortError, match=r"cohort: 2 subjects found, .* each of 3 folds expected\. Lower `folds`"):
        assign_folds(["a", "b", "b", "b"], 3, 0)
