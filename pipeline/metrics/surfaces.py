"""Distances between the surfaces of two masks, surface elements weighted by their area: the measures' default.

One expensive function (`surface_distances`) returns plain arrays, cheap ones (`nsd`, `hd95_mm`, `hd_mm`, `assd_mm`) read
them.

Source: Nikolov et al. 2021, doi:10.2196/26151 (surface elements, NSD), as in DeepMind's surface-distance.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.areas import areas_mm2
from pipeline.metrics.arrays import Elements, Pair, Points, Ranks, Spacing
from pipeline.metrics.nearest import nearest_mm

# A spacing of 0.8 mm stored as float32 is 0.800000011920929; compared exactly it fails a tolerance of 0.8 mm.
TOLERANCE_SLACK_MM = 1e-4


@dataclass(frozen=True)
class SurfaceDistances:
    """Every surface element of two masks. An empty mask has none; the elements of the other are at inf."""

    distances_mm: Elements  # to the surface of the other mask
    areas_mm2: Elements
    is_reference: NDArray[np.bool_]  # (N,) of the reference, else of the prediction


@dataclass(frozen=True)
class Border:
    """The voxel corners around which not all 8 voxels are of one label, and the labels of those."""

    corners: Points
    ranks: Ranks  # (N, 8)


def borders(pair: Pair) -> tuple[Border, Border]:
    return _border(pair.reference, pair.flat_axis), _border(pair.prediction, pair.flat_axis)


def surface_distances(reference: Border, prediction: Border, rank: int, spacing_mm: Spacing) -> SurfaceDistances:
    """Of one label. The edge of the image closes a mask."""
    corners, own_mm2 = _surface(reference, rank, spacing_mm)
    others, others_mm2 = _surface(prediction, rank, spacing_mm)
    return join(corners, own_mm2, others, others_mm2, spacing_mm)


def join(
    points: Points, points_mm2: Elements, others: Points, others_mm2: Elements, spacing_mm: Spacing
) -> SurfaceDistances:
    """From the reference's points to the prediction's and back."""
    forth_mm, back_mm = nearest_mm(points, others, spacing_mm), nearest_mm(others, points, spacing_mm)
    is_reference = np.arange(forth_mm.size + back_mm.size) < forth_mm.size
    return SurfaceDistances(np.concatenate([forth_mm, back_mm]), np.concatenate([points_mm2, others_mm2]), is_reference)


def nsd(distances: SurfaceDistances, *, tolerance_mm: float) -> float | None:
    """Share of both surfaces within the tolerance of the other, 0 to 1. One mask empty: 0; both: None."""
    is_close = distances.distances_mm <= tolerance_mm + TOLERANCE_SLACK_MM
    return float(np.average(is_close, weights=distances.areas_mm2)) if is_close.size else None


def hd95_mm(distances: SurfaceDistances) -> float | None:
    """Distance within which 95 % of the area lies, the worse direction. One mask empty: inf; both: None."""
    worst_mm = []
    for side in (distances.is_reference, ~distances.is_reference):
        if side.any():
            side_mm, side_mm2 = distances.distances_mm[side], distances.areas_mm2[side]
            rising = np.argsort(side_mm)
            covered_mm2 = np.cumsum(side_mm2[rising])
            # The slack: sums in another order differ in the last digits, and must not move an exact 95 %.
            enough = np.searchsorted(covered_mm2, covered_mm2[-1] * (0.95 - 1e-9))
            worst_mm.append(float(side_mm[rising[enough]]))
    return max(worst_mm, default=None)


def hd_mm(distances: SurfaceDistances) -> float | None:
    """Largest distance from either surface to the other. One mask empty: inf; both: None."""
    return float(distances.distances_mm.max()) if distances.distances_mm.size else None


def assd_mm(distances: SurfaceDistances) -> float | None:
    """Mean distance over the area of both surfaces together. One mask empty: inf; both: None."""
    weights = distances.areas_mm2
    return float(np.average(distances.distances_mm, weights=weights)) if weights.size else None


def _border(ranked: Ranks, flat_axis: int | None) -> Border:
    """Find the border of all labels at once: more labels or far islands hardly cost more.

    A frame of background closes labels at the edge of the image. The short axis of a 2D image gets its slice
    twice instead: walls between equal slices measure the contour, which front and back would swamp.
    """
    framed = np.pad(ranked, 1)
    if flat_axis is not None:
        framed = framed.take([1, 1], axis=flat_axis)
    width = framed.shape[2]
    steps = [j * width + k for j in (0, 1) for k in (0, 1)]
    places, around = [], []
    for plane, following in pairwise(framed):  # by plane, which stays in the cache
        low, high = np.minimum(plane, following), np.maximum(plane, following)
        low, high = np.minimum(low[:-1], low[1:]), np.maximum(high[:-1], high[1:])
        differs = np.minimum(low[:, :-1], low[:, 1:]) != np.maximum(high[:, :-1], high[:, 1:])
        j, k = np.divmod(np.flatnonzero(differs), width - 1)
        at = j * width + k
        places.append((j, k))
        around.append(np.stack([voxels.ravel()[at + step] for voxels in (plane, following) for step in steps], axis=1))
    i = np.repeat(np.arange(len(places)), [len(j) for j, _ in places])
    corners = np.stack([i, *(np.concatenate(along) for along in zip(*places, strict=True))])
    return Border(corners, np.concatenate(around))


def _surface(border: Border, rank: int, spacing_mm: Spacing) -> tuple[Points, Elements]:
    codes = np.packbits(border.ranks == rank)  # one byte a corner
    passes = np.flatnonzero((codes != 0) & (codes != 255))
    return border.corners.take(passes, axis=1), areas_mm2(spacing_mm)[codes[passes]]
