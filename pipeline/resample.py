"""Resampling of arrays between grids that cover the same box of space; separable, one small matrix per axis.

A spline of any order is linear in its samples, so resampling one axis is a matrix product: the matrix is scipy's own
answer for the identity, and BLAS does the rest. Label maps need no arithmetic but near borders. Knows nothing of files,
plans or label names.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from pipeline.images import Segmentation, Shape, Spacing, Volume

BLOCK_ROWS = 64  # of a matrix that are multiplied together: fewer leave out more zeros, more suit BLAS better
BLOCK_VOXELS = 1_000_000  # near borders of labels that are weighed together
TIE = 1e-6  # of weights that only rounding tells apart
NEGLIGIBLE = 1e-8  # of a weight: what a cubic spline gives to a sample fourteen voxels away
ANISOTROPY = 3.0  # above this ratio of spacings the coarse axis is not interpolated (nnU-Net's rule)

AxisTaps = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]


def resampled_shape(shape: Shape, spacing_mm: Spacing, target_spacing_mm: Spacing) -> Shape:
    """Voxels that cover the same box at the target spacing, at least one per axis."""
    pairs = zip(shape, spacing_mm, target_spacing_mm, strict=True)
    return tuple(max(1, round(size * old / new)) for size, old, new in pairs)


def interpolation_orders(spacing_mm: Spacing, target_spacing_mm: Spacing, order: int) -> tuple[int, ...]:
    """Spline order per axis: `order`, but 0 along the single coarse axis of an anisotropic grid.

    Source: nnU-Net v2; a coarse slice distance carries no information between the slices, a spline would invent it.
    """
    for spacing in (spacing_mm, target_spacing_mm):
        if max(spacing) / min(spacing) > ANISOTROPY:
            coarse = [size == max(spacing) for size in spacing]
            is_single = sum(coarse) == 1
            return tuple(0 if is_single and is_coarse else order for is_coarse in coarse)
    return (order,) * len(spacing_mm)


@lru_cache(maxsize=64)
def _axis_weights(old: int, new: int, order: int) -> NDArray[np.float32]:
    """(new, old): sample i of the result is row i times the old samples; both axes cover the same length.

    What is negligible is 0: a spline reaches across the whole axis, by numbers so small that processors take far longer.
    """
    from scipy import ndimage  # a quarter of a second, which a job does without where scans have the plan's spacing

    identity = np.eye(old)
    weights = ndimage.zoom(identity, (new / old, 1), order=order, mode="nearest", grid_mode=True)
    return np.where(np.abs(weights) > NEGLIGIBLE, weights, 0).astype(np.float32)


def linear_taps(old: int, new: int, order: int) -> AxisTaps:
    """Of each new sample the two old ones that `resample` mixes, and the weight of the second; equal if it takes only one.

    Args:
        order: 0 or 1; splines of a higher order mix more samples.
    """
    weights = _axis_weights(old, new, order)
    is_used = weights > 0
    first, second = is_used.argmax(axis=1), old - 1 - is_used[:, ::-1].argmax(axis=1)
    assert (second - first <= 1).all(), (old, new, order)
    return first, second, np.where(first == second, np.float32(0), weights[np.arange(new), second])


def resample(array: Volume, shape: Shape, orders: Sequence[int]) -> Volume:
    """Interpolate the last `len(shape)` axes of `array` onto `shape` voxels that cover the same box.

    Args:
        array: (..., I, J, K).
        shape: the new I, J, K in voxels.
        orders: spline order per axis, 0 (nearest) to 5.
    """
    result = np.asarray(array, dtype=np.float32)
    first = array.ndim - len(shape)
    for axis in _shrinking_first(array.shape[first:], shape):
        old, new, order = array.shape[first + axis], shape[axis], orders[axis]
        if old != new and order == 0:
            result = result.take(linear_taps(old, new, order)[0], first + axis)
        elif old != new:
            result = _mixed(result, _axis_weights(old, new, order), first + axis)
    return np.ascontiguousarray(result)


def _shrinking_first(old: Shape, new: Shape) -> list[int]:
    return sorted(range(len(new)), key=lambda axis: new[axis] / old[axis])


def _mixed(array: Volume, weights: NDArray[np.float32], axis: int) -> Volume:
    """One axis by its matrix, in which a block of rows has little beside the diagonal."""
    (new, old), before = weights.shape, math.prod(array.shape[:axis])
    flat = np.ascontiguousarray(array).reshape(before, old, -1)
    result = np.empty((before, new, flat.shape[2]), np.float32)
    for begin in range(0, new, BLOCK_ROWS):
        rows = slice(begin, begin + BLOCK_ROWS)
        used = np.flatnonzero(weights[rows].any(axis=0))
        columns = slice(used[0], used[-1] + 1)
        if flat.shape[2] == 1:  # one product instead of one for each line
            result[:, rows, 0] = flat[:, columns, 0] @ weights[rows, columns].T
        else:
            np.matmul(weights[rows, columns], flat[:, columns], out=result[:, rows])
    return result.reshape(*array.shape[:axis], new, *array.shape[axis + 1 :])


def resample_labels(segmentation: Segmentation, shape: Shape, orders: Sequence[int]) -> Segmentation:
    """The label that is heaviest at each new voxel after resampling every label's own mask; ties go to the lower label.

    Between old voxels of one label there is nothing to weigh: only the others are, those near borders.

    Args:
        segmentation: (I, J, K), integers.
        shape: the new I, J, K in voxels.
        orders: per axis, 0 (nearest) or 1 (linear).
    """
    if tuple(segmentation.shape) == tuple(shape):
        return segmentation
    taps = [linear_taps(*axis) for axis in zip(segmentation.shape, shape, orders, strict=True)]
    result, is_sure = segmentation, np.ones(segmentation.shape, bool)
    for axis in _shrinking_first(segmentation.shape, shape):
        first, second, _ = taps[axis]
        if segmentation.shape[axis] != shape[axis]:
            near, far = result.take(first, axis), result.take(second, axis)
            is_sure = is_sure.take(first, axis) & is_sure.take(second, axis) & (near == far)
            result = near
    result, unsure = np.ascontiguousarray(result), np.flatnonzero(~is_sure)
    for begin in range(0, len(unsure), BLOCK_VOXELS):
        block = unsure[begin : begin + BLOCK_VOXELS]
        corners = _corners(segmentation, taps, np.unravel_index(block, shape))
        result.ravel()[block] = _heaviest(*zip(*corners, strict=True))
    return result


def _corners(
    segmentation: Segmentation, taps: Sequence[AxisTaps], voxels: tuple[NDArray[np.intp], ...]
) -> Iterator[tuple[Segmentation, NDArray[np.float32]]]:
    """(N,) labels and weights of each of the old voxels around N new ones."""
    ends = []
    for (first, second, weight), along in zip(taps, voxels, strict=True):
        near = (first[along], 1 - weight[along])
        ends.append((near, (second[along], weight[along])) if weight.any() else (near,))
    for corner in product(*ends):
        places, weights = zip(*corner, strict=True)
        yield segmentation[places], math.prod(weights[1:], start=weights[0])


def _heaviest(labels: Sequence[Segmentation], weights: Sequence[NDArray[np.float32]]) -> Segmentation:
    """(N,): of the corners' labels the one that has most weight in all of them, or the lowest of those that have."""
    totals = [weight.copy() for weight in weights]
    for one, other in combinations(range(len(labels)), 2):
        is_same = labels[one] == labels[other]
        totals[one] += is_same * weights[other]
        totals[other] += is_same * weights[one]
    heaviest, result = totals[0], labels[0]
    for total, label in zip(totals[1:], labels[1:], strict=True):
        wins = (total > heaviest + TIE) | ((label < result) & (total > heaviest - TIE))
        heaviest, result = np.where(wins, total, heaviest), np.where(wins, label, result)
    return result
