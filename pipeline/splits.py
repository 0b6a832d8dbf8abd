"""Subjects to folds. Knows names and numbers only: neither cases, files nor settings."""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain

from pipeline.errors import CohortError

Volumes = Mapping[int, float]  # of one case, by label value in any unit; a label it does not have may be left out


def assign_folds(
    subjects: Sequence[str], num_folds: int, seed: int, volumes: Sequence[Volumes] | None = None
) -> list[int]:
    """The fold of each entry of `subjects`, one entry per case: all cases of a subject share a fold.

    Subjects with many cases come first, then those with rare labels, then those with large ones; the seed shuffles
    neighbours, as many as there are folds. Each goes to the fold with the fewest cases; of those to the one with the
    fewest cases of its labels, the rarest counting most; of those to the one with the least volume. So no fold has more
    cases than another plus the largest subject. The order of the input does not matter.

    Args:
        volumes: of each case; None where there are no labels.

    Raises:
        CohortError: fewer subjects than folds.
    """
    num_cases = Counter(subjects)
    refuse_too_few(num_cases, num_folds)
    found: dict[str, dict[int, list[float]]] = {subject: {} for subject in num_cases}
    for subject, own in zip(subjects, volumes or [{}] * len(subjects), strict=True):
        for label in (label for label, volume in own.items() if volume > 0):
            found[subject].setdefault(label, []).append(own[label])
    labels = {label for own in found.values() for label in own}
    num_with = {label: sum(len(own.get(label, [])) for own in found.values()) for label in labels}
    # fsum does not depend on the order of the cases
    total = {label: math.fsum(math.fsum(own.get(label, [])) for own in found.values()) for label in labels}

    # Of all cases that have a label, and of all its volume, the part that a subject has: all labels weigh the same.
    rarity = {
        subject: {label: len(each) / num_with[label] for label, each in own.items()} for subject, own in found.items()
    }
    share = {
        subject: {label: math.fsum(each) / total[label] for label, each in own.items()}
        for subject, own in found.items()
    }

    def rank(subject: str) -> tuple[float, float, float, bytes]:
        rare, large = (math.fsum(part[subject].values()) for part in (rarity, share))
        return -num_cases[subject], -rare, -large, digest(seed, subject)

    ranked = sorted(num_cases, key=rank)
    alike = (ranked[start : start + num_folds] for start in range(0, len(ranked), num_folds))
    shuffled = chain.from_iterable(sorted(part, key=lambda subject: digest(seed, subject)) for part in alike)
    sizes = [0] * num_folds
    dealt = [[dict.fromkeys(labels, 0.0) for _ in range(num_folds)] for _ in (rarity, share)]
    fold_of = {}
    for subject in shuffled:
        # what is there already of what the subject brings: the least product adds least to the sum of squares
        shared, filled = (
            [math.fsum(own[label] * part for label, part in parts[subject].items()) for own in folds]
            for parts, folds in zip((rarity, share), dealt, strict=True)
        )
        fold = min(range(num_folds), key=list(zip(sizes, shared, filled, strict=True)).__getitem__)
        fold_of[subject] = fold
        sizes[fold] += num_cases[subject]
        for parts, folds in zip((rarity, share), dealt, strict=True):
            for label, part in parts[subject].items():
                folds[fold][label] += part
    return [fold_of[subject] for subject in subjects]


def refuse_too_few(subjects: Mapping[str, int] | Sequence[str], num_folds: int) -> None:
    """
    Raises:
        CohortError: fewer subjects than folds.
    """
    if len(set(subjects)) < num_folds:
        raise CohortError(
            f"cohort: {len(set(subjects))} subjects found, one at least for each of {num_folds} folds expected. "
            "Lower `folds` in config.yaml or add subjects."
        )


def digest(*parts: object) -> bytes:
    """Shuffles the same on every machine and under every version of numpy."""
    return hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
