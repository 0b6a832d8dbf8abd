"""How many lesions of a label were found, missed and invented, and how well those that were found are outlined.

A lesion is a component of a label, voxels that share a corner belonging together (26 neighbours). It is found where one
component of the prediction has at least half of the union of both in common with it (IoU >= 0.5). No other component can
then: two that have half of one lesion each cover all of it, and would be one component.

Source: Kirillov et al. 2019, arXiv:1801.00868 (panoptic quality: PQ = F1, which it calls RQ, times SQ).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from pipeline.metrics.arrays import Mask, Segmentation, make_pair

Box = tuple[slice, ...]
MIN_IOU = 0.5
NEIGHBOURS = np.ones((3, 3, 3))


@dataclass(frozen=True, kw_only=True)
class LesionMeasures:
    """One label of one case. Without a lesion in either mask all shares are None; where none was found they are 0."""

    lesion_tp: int
    lesion_fp: int
    lesion_fn: int
    lesion_sensitivity: float | None = None
    lesion_precision: float | None = None
    lesion_f1: float | None = None  # recognition quality, RQ
    sq: float | None = None  # segmentation quality: mean IoU of the lesions found
    pq: float | None = None  # panoptic quality


def measure_lesions(
    reference: Segmentation, prediction: Segmentation, *, labels: Sequence[int]
) -> list[LesionMeasures]:
    """Of every label of one case, in the order of `labels`.

    Raises:
        ValueError: shapes, types or labels are not as `measure` wants them.
    """
    pair = make_pair(reference, prediction, labels, (1, 1, 1))
    boxes = zip(*(ndimage.find_objects(ranked, len(labels)) for ranked in pair.both), strict=True)
    measures = []
    for rank, found in enumerate(boxes, start=1):
        box = _around([one for one in found if one])
        measures.append(_measure_one(*(ranked[box] == rank for ranked in pair.both)))
    return measures


def _around(boxes: Sequence[Box]) -> Box:
    """One box around all, so that a small label of a large scan costs little; empty around none."""
    if not boxes:
        return (slice(0),) * 3
    return tuple(
        slice(min(one.start for one in along), max(one.stop for one in along)) for along in zip(*boxes, strict=True)
    )


def _measure_one(reference: Mask, prediction: Mask) -> LesionMeasures:
    parts, num_parts = ndimage.label(reference, NEIGHBOURS)
    others, num_others = ndimage.label(prediction, NEIGHBOURS)
    sizes, other_sizes = np.bincount(parts[reference]), np.bincount(others[prediction])
    is_shared = reference & prediction
    codes = parts[is_shared].astype(np.int64) * (num_others + 1) + others[is_shared]
    pairs, num_shared = np.unique(codes, return_counts=True)
    part, other = np.divmod(pairs, num_others + 1)
    ious = num_shared / (sizes[part] + other_sizes[other] - num_shared)
    found = ious[ious >= MIN_IOU]
    num_found = len(found)
    counts = {"lesion_tp": num_found, "lesion_fp": num_others - num_found, "lesion_fn": num_parts - num_found}
    if not num_parts + num_others:
        return LesionMeasures(**counts)
    f1 = 2 * num_found / (num_parts + num_others)
    sq = float(found.mean()) if num_found else 0.0
    return LesionMeasures(
        **counts,
        lesion_sensitivity=num_found / num_parts if num_parts else 0.0,
        lesion_precision=num_found / num_others if num_others else 0.0,
        lesion_f1=f1,
        sq=sq,
        pq=f1 * sq,
    )
