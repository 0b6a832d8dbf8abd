"""Label maps as a cohort's targets see them: which voxels count, and which belong to which label or region.

Knows neither files nor what a measure means.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from pipeline.images import Segmentation
from pipeline.records import BACKGROUND, Cohort, Target
from pipeline.regions import paint

Measured = TypeVar("Measured")


def as_painted(reference: Segmentation, cohort: Cohort) -> Segmentation:
    """(I, J, K): a reference in the values of our masks, background where it has the ignore label or no region."""
    if not cohort.regions:
        return np.where(reference == cohort.ignore_label, BACKGROUND, reference)
    masks = np.stack([np.isin(reference, target.values) for target in cohort.targets])
    return paint(masks, list(cohort.regions.values()))


def per_target(
    measure: Callable[..., list[Measured]],
    reference: Segmentation,
    prediction: Segmentation,
    cohort: Cohort,
    targets: Sequence[Target],
) -> list[Measured]:
    """What `measure(reference, prediction, labels=...)` finds for each of the cohort's targets asked for, in their order.

    Where the reference has the ignore label, both are background.
    """
    if not targets:
        return []
    is_ignored = reference == cohort.ignore_label  # nowhere if there is none
    both = [np.where(is_ignored, BACKGROUND, array) for array in (reference, prediction)]
    if not cohort.regions:
        return measure(*both, labels=[target.painted for target in targets])
    return [measure(*(np.isin(array, one.values) for array in both), labels=[1])[0] for one in targets]
