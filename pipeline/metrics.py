"""Measures how well one predicted segmentation matches its reference, label by label.

Arrays in, numbers out: overlap from one joint histogram, distances between surface elements weighted by area.
It knows nothing of files, cases or cohorts: means, intervals and ranks over cases belong to `evaluate`.

One expensive function (`surface_distances`) returns plain arrays, cheap ones (`nsd`, `hd95_mm`, `hd_mm`,
`assd_mm`) read them. "No value" is None, never NaN: a NaN drops out of a mean unseen.

Source: Nikolov et al. 2021, doi:10.2196/26151 (surface elements, NSD), as in DeepMind's surface-distance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, spatial

Segmentation = NDArray[np.integer[Any]] | NDArray[np.bool_]  # (I, J, K), 0 = background
Mask = NDArray[np.bool_]  # (I, J, K)
Elements = NDArray[np.float64]  # (N,) one per surface element, mm or mm2
Ranks = NDArray[np.integer[Any]]  # place of a label in `labels` from 1 up, 0 = any other label
Indices = NDArray[np.intp]
Counts = NDArray[np.int64]  # (L + 1, L + 1) voxels; reference rank by row, prediction rank by column
Spacing = tuple[float, ...]  # mm along I, J, K
Status = Literal["ok", "missed", "false_positive", "absent_ok"]

# A spacing of 0.8 mm stored as float32 is 0.800000011920929; compared exactly it fails a tolerance of 0.8 mm.
TOLERANCE_SLACK_MM = 1e-4


@dataclass(frozen=True)
class LabelMeasures:
    """One label of one case. Label in one mask only: dsc and nsd 0, distances inf; in neither: all None."""

    label: int
    status: Status
    reference_ml: float
    prediction_ml: float
    volume_difference_ml: float  # prediction - reference
    dsc: float | None
    nsd: float | None
    hd95_mm: float | None
    hd_mm: float | None
    assd_mm: float | None


@dataclass(frozen=True)
class SurfaceDistances:
    """Every surface element of two masks. An empty mask has none; the elements of the other are at inf."""

    distances_mm: Elements  # to the surface of the other mask
    areas_mm2: Elements
    is_reference: NDArray[np.bool_]  # (N,) of the reference, else of the prediction


@dataclass(frozen=True)
class _Border:
    """The voxel corners around which not all 8 voxels are of one label."""

    corners: Indices  # (N,) flat indices into a grid of `shape`
    ranks: Ranks  # (N, 8)
    shape: tuple[int, ...]


def measure(
    reference: Segmentation,
    prediction: Segmentation,
    *,
    labels: Sequence[int],
    spacing_mm: Sequence[float],
    tolerance_mm: float,
) -> list[LabelMeasures]:
    """Measure every label of one case, in the order of `labels`.

    Args:
        reference, prediction: (I, J, K) on one grid. Where one axis has size 1, contours are measured: 2D.
        labels: distinct, from 1 up. Any other label counts as background.
        spacing_mm: mm along I, J, K.
        tolerance_mm: how far apart surfaces may be and still agree, for nsd.
    Raises:
        ValueError: shapes, types, labels or spacing are not as said above.
    """
    spacing = _checked(reference, prediction, labels, spacing_mm)
    ranked = _ranked(reference, labels), _ranked(prediction, labels)
    counts = _joint_histogram(*ranked, num_ranks=len(labels) + 1)
    borders = _border(ranked[0]), _border(ranked[1])
    voxel_ml = math.prod(spacing) / 1000
    measures = []
    for rank, label in enumerate(labels, start=1):
        num_reference, num_prediction = int(counts[rank].sum()), int(counts[:, rank].sum())
        distances = _distances(*borders, rank, spacing)
        measures.append(
            LabelMeasures(
                label=int(label),
                status=_status(num_reference, num_prediction),
                reference_ml=num_reference * voxel_ml,
                prediction_ml=num_prediction * voxel_ml,
                volume_difference_ml=(num_prediction - num_reference) * voxel_ml,
                dsc=_dsc(counts, rank),
                nsd=nsd(distances, tolerance_mm=tolerance_mm),
                hd95_mm=hd95_mm(distances),
                hd_mm=hd_mm(distances),
                assd_mm=assd_mm(distances),
            )
        )
    return measures


def dsc(reference: Segmentation, prediction: Segmentation, *, labels: Sequence[int]) -> list[float | None]:
    """Dice similarity of every label, 0 to 1, in one pass. Label in one mask only: 0; in neither: None."""
    _checked(reference, prediction, labels, (1, 1, 1))
    ranked = _ranked(reference, labels), _ranked(prediction, labels)
    counts = _joint_histogram(*ranked, num_ranks=len(labels) + 1)
    return [_dsc(counts, rank) for rank in range(1, len(labels) + 1)]


def surface_distances(reference: Mask, prediction: Mask, *, spacing_mm: Sequence[float]) -> SurfaceDistances:
    """Distances between the surfaces of two (I, J, K) masks. The edge of the image closes a mask."""
    spacing = _checked(reference, prediction, [1], spacing_mm)
    borders = _border(_ranked(reference, [1])), _border(_ranked(prediction, [1]))
    return _distances(*borders, 1, spacing)


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


def _status(num_reference: int, num_prediction: int) -> Status:
    if num_reference:
        return "ok" if num_prediction else "missed"
    return "false_positive" if num_prediction else "absent_ok"


def _dsc(counts: Counts, rank: int) -> float | None:
    num_voxels = counts[rank].sum() + counts[:, rank].sum()
    return float(2 * counts[rank, rank] / num_voxels) if num_voxels else None


def _checked(
    reference: Segmentation, prediction: Segmentation, labels: Sequence[int], spacing_mm: Sequence[float]
) -> Spacing:
    for name, array in (("reference", reference), ("prediction", prediction)):
        if array.ndim != 3 or array.dtype.kind not in "biu":
            raise ValueError(f"{name}: expected an integer array (I, J, K), got {array.dtype} {array.shape}.")
    if reference.shape != prediction.shape:
        grids = f"reference {reference.shape} and prediction {prediction.shape}"
        raise ValueError(f"expected one grid, got {grids}: resample the prediction onto the reference grid.")
    if len(set(labels)) != len(labels) or min(labels, default=1) < 1:
        raise ValueError(f"labels: expected distinct integers from 1 up, got {list(labels)}.")
    spacing = tuple(float(mm) for mm in spacing_mm)
    if len(spacing) != 3 or not all(0 < mm < math.inf for mm in spacing):
        raise ValueError(f"spacing_mm: expected three lengths above 0 mm, got {spacing}.")
    return spacing


def _ranked(segmentation: Segmentation, labels: Sequence[int]) -> Ranks:
    ranks = np.zeros(max(labels, default=0) + 2, dtype=np.min_scalar_type(len(labels)))
    ranks[list(labels)] = np.arange(1, len(labels) + 1)
    ranked: Ranks = np.empty_like(segmentation, dtype=ranks.dtype, order="C")
    # By plane: indices of a whole body, 8 bytes each, outweigh it. Labels off the table are clipped to a 0.
    for plane, plane_ranks in zip(segmentation, ranked, strict=True):
        ranks.take(plane.astype(np.intp), mode="clip", out=plane_ranks)
    return ranked


def _joint_histogram(reference: Ranks, prediction: Ranks, *, num_ranks: int) -> Counts:
    counts = np.zeros(num_ranks**2, dtype=np.int64)
    for plane, other in zip(reference, prediction, strict=True):
        counts += np.bincount((plane.astype(np.intp) * num_ranks + other).ravel(), minlength=num_ranks**2)
    return counts.reshape(num_ranks, num_ranks)


def _border(ranked: Ranks) -> _Border:
    """Find the border of all labels at once: more labels or far islands hardly cost more.

    A frame of background closes labels at the edge of the image. The short axis of a 2D image gets its slice
    twice instead: walls between equal slices measure the contour, which front and back would swamp.
    """
    framed = np.pad(ranked, 1)
    if ranked.shape.count(1) == 1:
        framed = framed.take([1, 1], axis=ranked.shape.index(1))
    low, high = np.minimum(framed[:-1], framed[1:]), np.maximum(framed[:-1], framed[1:])
    low, high = np.minimum(low[:, :-1], low[:, 1:]), np.maximum(high[:, :-1], high[:, 1:])
    low, high = np.minimum(low[..., :-1], low[..., 1:]), np.maximum(high[..., :-1], high[..., 1:])
    corners = np.ravel_multi_index(np.nonzero(low != high), framed.shape)
    steps = [np.ravel_multi_index(voxel, framed.shape) for voxel in np.ndindex(2, 2, 2)]
    around = np.stack([framed.ravel()[corners + step] for step in steps], axis=1)
    return _Border(corners, around, framed.shape)


def _distances(reference: _Border, prediction: _Border, rank: int, spacing_mm: Spacing) -> SurfaceDistances:
    corners, areas_mm2 = _surface(reference, rank, spacing_mm)
    others, others_mm2 = _surface(prediction, rank, spacing_mm)
    forth_mm = _nearest_mm(corners, others, reference.shape, spacing_mm)
    back_mm = _nearest_mm(others, corners, reference.shape, spacing_mm)
    distances_mm = np.concatenate([forth_mm, back_mm])
    is_reference = np.arange(distances_mm.size) < forth_mm.size
    return SurfaceDistances(distances_mm, np.concatenate([areas_mm2, others_mm2]), is_reference)


def _surface(border: _Border, rank: int, spacing_mm: Spacing) -> tuple[Indices, Elements]:
    codes = np.packbits(border.ranks == rank)  # one byte a corner
    passes = (codes != 0) & (codes != 255)
    return border.corners[passes], _areas_mm2(spacing_mm)[codes[passes]]


def _nearest_mm(corners: Indices, others: Indices, shape: tuple[int, ...], spacing_mm: Spacing) -> Elements:
    distances_mm = np.zeros(corners.shape)
    apart = np.isin(corners, others, assume_unique=True, invert=True)  # good matches share most: no search
    points_mm = np.stack(np.unravel_index(corners[apart], shape), axis=1) * spacing_mm
    others_mm = np.stack(np.unravel_index(others, shape), axis=1) * spacing_mm
    tree = spatial.cKDTree(others_mm, compact_nodes=False, balanced_tree=False)  # fastest on grid points
    distances_mm[apart] = tree.query(points_mm)[0]  # inf where there are no others
    return distances_mm


@lru_cache(maxsize=16)
def _areas_mm2(spacing_mm: Spacing) -> Elements:
    """(256,) area of surface in the box between 8 voxel centres; the code's top bit is voxel (0, 0, 0).

    The surface cuts the box's edges half way, and wraps the voxels inside or outside, whichever are fewer;
    those not joined by an edge of the box it wraps apart.
    """
    areas_mm2 = np.zeros(256)
    for code in range(1, 255):
        voxels = np.unpackbits(np.array([code], dtype=np.uint8)).reshape(2, 2, 2)
        parts, num_parts = ndimage.label(voxels if voxels.sum() <= 4 else 1 - voxels)
        for part in range(1, num_parts + 1):
            areas_mm2[code] += _wrap_mm2(np.argwhere(parts == part), spacing_mm)
    return areas_mm2


def _wrap_mm2(voxels: Indices, spacing_mm: Spacing) -> float:
    """Area around 1 to 4 joined voxels, (V, 3), of one box: six shapes, told apart by size and `split`."""
    faces = math.prod(spacing_mm) / np.array(spacing_mm)  # mm2, of the box, across I, J, K
    split = np.minimum(voxels.sum(axis=0), len(voxels) - voxels.sum(axis=0))  # smaller side along each axis
    corner = float(np.linalg.norm(faces)) / 8  # triangle between the middles of three edges
    if len(voxels) == 1:
        return corner
    if len(voxels) == 2:  # a rectangle along their edge
        return float(np.linalg.norm(faces[split == 0])) / 2
    if len(voxels) == 3:  # an L: half of its face, and two triangles of one and two corners' area
        return float(faces[split == 0].sum()) / 2 + 3 * corner
    if split.min() == 0:  # a square: its face
        return float(faces[split == 0].sum())
    if split.max() == 1:  # one voxel and its three neighbours: a hexagon
        return 6 * corner
    flaps = [float(np.linalg.norm(np.delete(faces, axis))) / 4 for axis in np.flatnonzero(split == 1)]
    return 4 * corner + sum(flaps)  # a path along all three axes: a twisted hexagon
