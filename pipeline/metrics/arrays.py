"""What the measures call their arrays, and two label maps made ready for them: refused, or numbered alike and cropped."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Segmentation = NDArray[np.integer[Any]] | NDArray[np.bool_]  # (I, J, K), 0 = background
Mask = NDArray[np.bool_]  # (I, J, K)
Elements = NDArray[np.float64]  # (N,) one per surface element, mm or mm2
Ranks = NDArray[np.integer[Any]]  # place of a label in `labels` from 1 up, 0 = any other label
Points = NDArray[np.intp]  # (3, N) voxels or their corners, in steps of the grid
Spacing = tuple[float, ...]  # mm along I, J, K


@dataclass(frozen=True)
class Pair:
    """Two label maps of one grid, (I, J, K) each, in the box around all labels of both."""

    reference: Ranks
    prediction: Ranks
    spacing_mm: Spacing
    flat_axis: int | None  # of a grid one voxel thick along one axis, which is measured in 2D

    @property
    def both(self) -> tuple[Ranks, Ranks]:
        return self.reference, self.prediction


def make_pair(
    reference: Segmentation, prediction: Segmentation, labels: Sequence[int], spacing_mm: Sequence[float]
) -> Pair:
    """
    Raises:
        ValueError: shapes, types, labels or spacing are not what a measure can do with.
    """
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
    flat_axis = reference.shape.index(1) if reference.shape.count(1) == 1 else None
    box = _box(reference, prediction)
    return Pair(_ranked(reference[box], labels), _ranked(prediction[box], labels), spacing, flat_axis)


def _box(reference: Segmentation, prediction: Segmentation) -> tuple[slice, ...]:
    """Around all that is not background in one of them; empty if nothing is."""
    is_used = [np.zeros(size, np.bool_) for size in reference.shape]
    for index, (plane, other) in enumerate(zip(reference, prediction, strict=True)):
        foreground = (plane != 0) | (other != 0)
        rows = foreground.any(axis=1)
        is_used[0][index] = rows.any()
        is_used[1] |= rows
        is_used[2] |= foreground.any(axis=0)
    used = [np.flatnonzero(one) for one in is_used]
    return tuple(slice(one[0], one[-1] + 1) if one.size else slice(0) for one in used)


def _ranked(segmentation: Segmentation, labels: Sequence[int]) -> Ranks:
    ranks = np.zeros(max(labels, default=0) + 2, dtype=np.min_scalar_type(len(labels)))
    ranks[list(labels)] = np.arange(1, len(labels) + 1)
    ranked: Ranks = np.empty_like(segmentation, dtype=ranks.dtype, order="C")
    # By plane: indices of a whole body, 8 bytes each, outweigh it. Labels off the table are clipped to a 0.
    for plane, plane_ranks in zip(segmentation, ranked, strict=True):
        ranks.take(plane.astype(np.intp), mode="clip", out=plane_ranks)
    return ranked
