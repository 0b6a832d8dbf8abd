"""The other definition of a surface: the voxels of a mask that touch another face to face, each counted once, as MONAI's.

Gives other numbers for the same masks than elements weighted by area; offered to compare with published ones.
"""

import math
from dataclasses import dataclass

import numpy as np

from pipeline.metrics.arrays import Pair, Points, Ranks, Spacing
from pipeline.metrics.surfaces import SurfaceDistances, join


@dataclass(frozen=True)
class Edges:
    """The voxels of all labels with a neighbour of another label, or at the edge of the image."""

    voxels: Points
    ranks: Ranks  # (N,)


def edges(pair: Pair) -> tuple[Edges, Edges]:
    return _edges(pair.reference, pair.flat_axis), _edges(pair.prediction, pair.flat_axis)


def edge_distances(reference: Edges, prediction: Edges, rank: int, spacing_mm: Spacing) -> SurfaceDistances:
    """Of one label, with every voxel of the same weight."""
    points, others = (one.voxels.take(np.flatnonzero(one.ranks == rank), axis=1) for one in (reference, prediction))
    return join(points, np.ones(points.shape[1]), others, np.ones(others.shape[1]), spacing_mm)


def hd95_voxel_mm(distances: SurfaceDistances) -> float | None:
    """95th percentile of the distances, between two of them by proportion; the worse direction. Empty: as `hd95_mm`."""
    if not distances.is_reference.size:
        return None
    if math.isinf(distances.distances_mm[0]):
        return math.inf
    sides = (distances.is_reference, ~distances.is_reference)
    return max(float(np.percentile(distances.distances_mm[side], 95)) for side in sides)


def hd95_voxel_pooled_mm(distances: SurfaceDistances) -> float | None:
    """95th percentile of the distances of both directions together, as MedPy's: an island drowns in it. Empty: as `hd95_mm`."""
    if distances.distances_mm.size and math.isinf(distances.distances_mm[0]):
        return math.inf
    return float(np.percentile(distances.distances_mm, 95)) if distances.distances_mm.size else None


def _edges(ranked: Ranks, flat_axis: int | None) -> Edges:
    is_edge = np.zeros(ranked.shape, np.bool_)
    for axis in range(3):
        if axis != flat_axis and ranked.size:  # in 2D a contour, not all of the slice
            planes, found = np.moveaxis(ranked, axis, 0), np.moveaxis(is_edge, axis, 0)
            differs = planes[1:] != planes[:-1]
            found[1:] |= differs
            found[:-1] |= differs
            found[[0, -1]] = True
    is_edge &= ranked != 0
    return Edges(np.stack(np.nonzero(is_edge)), ranked[is_edge])
