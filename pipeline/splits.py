"""Subjects to folds. Knows names and numbers only: neither cases, files nor settings."""

import hashlib
from collections import Counter
from collections.abc import Sequence

from pipeline.errors import CohortError


def assign_folds(subjects: Sequence[str], num_folds: int, seed: int) -> list[int]:
    """The fold of each entry of `subjects`, one entry per case: all cases of a subject share a fold.

    The order of the input does not matter, and no fold has more cases than another plus the largest subject.

    Raises:
        CohortError: fewer subjects than folds.
    """
    num_cases = Counter(subjects)
    if len(num_cases) < num_folds:
        raise CohortError(
            f"cohort: {len(num_cases)} subjects found, one at least for each of {num_folds} folds expected. "
            "Lower `folds` in config.yaml or add subjects."
        )
    # a digest shuffles the same on every machine and under every version of numpy
    shuffled = sorted(num_cases, key=lambda subject: hashlib.sha256(f"{seed} {subject}".encode()).digest())
    sizes = [0] * num_folds
    fold_of = {}
    for subject in sorted(shuffled, key=lambda subject: -num_cases[subject]):
        fold = sizes.index(min(sizes))
        fold_of[subject] = fold
        sizes[fold] += num_cases[subject]
    return [fold_of[subject] for subject in subjects]
