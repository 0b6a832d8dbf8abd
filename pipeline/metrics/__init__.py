"""Measures how well one predicted segmentation matches its reference, label by label.

Arrays in, numbers out. It knows nothing of files, cases or cohorts: means, intervals and ranks over cases belong to
`evaluate`. "No value" is None, never NaN: a NaN drops out of a mean unseen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.metrics import overlap, surfaces, voxel_edges
from pipeline.metrics.arrays import Mask, Segmentation, make_pair
from pipeline.metrics.lesions import MIN_IOU, LesionMeasures, measure_lesions
from pipeline.metrics.surfaces import TOLERANCE_SLACK_MM

__all__ = [
    "MIN_IOU",
    "TOLERANCE_SLACK_MM",
    "LabelMeasures",
    "LesionMeasures",
    "Mask",
    "Segmentation",
    "Status",
    "dsc",
    "measure",
    "measure_lesions",
]

Status = Literal["ok", "missed", "false_positive", "absent_ok"]


@dataclass(frozen=True, kw_only=True)
class LabelMeasures:
    """One label of one case. Label in one mask only: overlaps and nsd 0, distances inf; in neither: all None.

    Measures of voxel edges are None as well where they were not asked for. A relative difference needs a reference.
    """

    label: int
    status: Status
    reference_ml: float
    prediction_ml: float
    volume_difference_ml: float  # prediction - reference
    volume_difference_relative: float | None  # to the reference; -1 is a label that is missed
    dsc: float | None
    iou: float | None
    sensitivity: float | None
    precision: float | None
    nsd: float | None
    hd95_mm: float | None
    hd_mm: float | None
    assd_mm: float | None
    nsd_voxel: float | None = None
    hd95_voxel_mm: float | None = None
    hd95_voxel_pooled_mm: float | None = None


def measure(
    reference: Segmentation,
    prediction: Segmentation,
    *,
    labels: Sequence[int],
    spacing_mm: Sequence[float],
    tolerance_mm: float,
    has_voxel_edges: bool = False,
) -> list[LabelMeasures]:
    """Measure every label of one case, in the order of `labels`.

    Args:
        reference, prediction: (I, J, K) on one grid. Where one axis has size 1, contours are measured: 2D.
        labels: distinct, from 1 up. Any other label counts as background.
        spacing_mm: mm along I, J, K.
        tolerance_mm: how far apart surfaces may be and still agree, for nsd.
        has_voxel_edges: whether nsd and hd95 are also measured by that definition of a surface.
    Raises:
        ValueError: shapes, types, labels or spacing are not as said above.
    """
    pair = make_pair(reference, prediction, labels, spacing_mm)
    counts, borders = overlap.joint_histogram(pair, len(labels) + 1), surfaces.borders(pair)
    edges = voxel_edges.edges(pair) if has_voxel_edges else None
    voxel_ml = math.prod(pair.spacing_mm) / 1000
    measures = []
    for rank, label in enumerate(labels, start=1):
        num_reference, num_prediction = int(counts[rank].sum()), int(counts[:, rank].sum())
        distances = surfaces.surface_distances(*borders, rank, pair.spacing_mm)
        by_edges = voxel_edges.edge_distances(*edges, rank, pair.spacing_mm) if edges else None
        measures.append(
            LabelMeasures(
                label=int(label),
                status=_status(num_reference, num_prediction),
                reference_ml=num_reference * voxel_ml,
                prediction_ml=num_prediction * voxel_ml,
                volume_difference_ml=(num_prediction - num_reference) * voxel_ml,
                volume_difference_relative=num_prediction / num_reference - 1 if num_reference else None,
                dsc=overlap.dsc(counts, rank),
                iou=overlap.iou(counts, rank),
                sensitivity=overlap.sensitivity(counts, rank),
                precision=overlap.precision(counts, rank),
                nsd=surfaces.nsd(distances, tolerance_mm=tolerance_mm),
                hd95_mm=surfaces.hd95_mm(distances),
                hd_mm=surfaces.hd_mm(distances),
                assd_mm=surfaces.assd_mm(distances),
                nsd_voxel=surfaces.nsd(by_edges, tolerance_mm=tolerance_mm) if by_edges else None,
                hd95_voxel_mm=voxel_edges.hd95_voxel_mm(by_edges) if by_edges else None,
                hd95_voxel_pooled_mm=voxel_edges.hd95_voxel_pooled_mm(by_edges) if by_edges else None,
            )
        )
    return measures


def dsc(reference: Segmentation, prediction: Segmentation, *, labels: Sequence[int]) -> list[float | None]:
    """Dice similarity of every label, 0 to 1, in one pass. Label in one mask only: 0; in neither: None."""
    counts = overlap.joint_histogram(make_pair(reference, prediction, labels, (1, 1, 1)), len(labels) + 1)
    return [overlap.dsc(counts, rank) for rank in range(1, len(labels) + 1)]


def _status(num_reference: int, num_prediction: int) -> Status:
    if num_reference:
        return "ok" if num_prediction else "missed"
    return "false_positive" if num_prediction else "absent_ok"
