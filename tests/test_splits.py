"""Folds: no subject in two, balanced, and the same whatever the order of the cases."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import CohortError
from pipeline.splits import assign_folds

SEEDS = st.integers(0, 2**32)


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[list[str], int]:
    """The subject of every case, shuffled, and a number of folds that is not too large."""
    num_cases = draw(st.dictionaries(st.text(min_size=1), st.integers(1, 6), min_size=2, max_size=30))
    subjects = draw(st.permutations([subject for subject, count in num_cases.items() for _ in range(count)]))
    return list(subjects), draw(st.integers(2, min(10, len(num_cases))))


@given(cohorts(), SEEDS)
def test_no_subject_is_in_two_folds(cohort: tuple[list[str], int], seed: int) -> None:
    subjects, num_folds = cohort
    pairs = set(zip(subjects, assign_folds(subjects, num_folds, seed), strict=True))
    assert len(pairs) == len(set(subjects))


@given(cohorts(), SEEDS)
def test_fold_sizes_differ_by_the_largest_subject_at_most(cohort: tuple[list[str], int], seed: int) -> None:
    subjects, num_folds = cohort
    folds = assign_folds(subjects, num_folds, seed)
    sizes = [folds.count(fold) for fold in range(num_folds)]
    assert sum(sizes) == len(subjects)
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= max(subjects.count(subject) for subject in subjects)


@given(cohorts(), SEEDS, st.randoms(use_true_random=False))
def test_the_order_of_the_cases_does_not_matter(cohort: tuple[list[str], int], seed: int, rng: random.Random) -> None:
    subjects, num_folds = cohort
    shuffled = rng.sample(subjects, len(subjects))
    fold_of = dict(zip(subjects, assign_folds(subjects, num_folds, seed), strict=True))
    assert assign_folds(shuffled, num_folds, seed) == [fold_of[subject] for subject in shuffled]


def test_another_seed_gives_other_folds() -> None:
    subjects = [f"s{number}" for number in range(40)]
    assert assign_folds(subjects, 5, 1) != assign_folds(subjects, 5, 2)


def test_a_seed_gives_these_folds_on_every_machine() -> None:
    assert assign_folds(["a", "b", "c", "d", "e", "a"], 3, 12345) == [0, 1, 1, 2, 2, 0]


def test_fewer_subjects_than_folds_are_refused() -> None:
    with pytest.raises(CohortError, match=r"cohort: 2 subjects found, .* each of 3 folds expected\. Lower `folds`"):
        assign_folds(["a", "b", "b", "b"], 3, 0)
