"""Means over cases and labels, and the draws of subjects that tell how sure they are. Knows no measure."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 1000
INTERVAL_PERCENT = (2.5, 97.5)
SEED = 0

PerCase = NDArray[np.float64]  # (N, L): one row per case, one column per label, NaN = no value
Means = NDArray[np.float64]  # (…, L + 1): one per label and last the mean over labels, NaN = of nothing
Weights = NDArray[np.float64]  # (…, N): how often each case counts


def draw_cases(subjects: Sequence[str], *, seed: int, num_resamples: int = NUM_RESAMPLES) -> Weights:
    """Draw as many subjects as there are, with replacement; all cases of a drawn subject come along.

    Args:
        subjects: (N,) the subject of every case.
    Returns:
        (R, N) how often each case is drawn.
    """
    unique, subject_of_case = np.unique(np.array(subjects), return_inverse=True)
    num_subjects = len(unique)
    chances = np.full(num_subjects, 1 / num_subjects)
    drawn = np.random.default_rng(seed).multinomial(num_subjects, chances, num_resamples)
    return drawn[:, subject_of_case].astype(np.float64)


def means(values: PerCase, weights: Weights) -> Means:
    """Per label the weighted mean over the cases with a value, then the mean over the labels with one."""
    has_value = np.isfinite(values)
    sums, counts = weights @ np.where(has_value, values, 0), weights @ has_value
    per_label = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    has_mean = np.isfinite(per_label)
    total, num_labels = np.where(has_mean, per_label, 0).sum(axis=-1), has_mean.sum(axis=-1)
    overall = np.divide(total, num_labels, out=np.full(np.shape(total), np.nan), where=num_labels > 0)
    return np.concatenate([per_label, overall[..., np.newaxis]], axis=-1)
