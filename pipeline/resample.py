"""Resampling of arrays between grids that cover the same box of space; separable, one small matrix per axis.

A spline of any order is linear in its samples, so resampling one axis is a matrix product: the matrix is scipy's own
answer for the identity, and BLAS does the rest. Knows nothing of files, plans or label names.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.images import Segmentation, Shape, Spacing, Volume

BLOCK_VOXELS = 4_000_000
ANISOTROPY = 3.0  # above this ratio of spacings the coarse axis is not interpolated (nnU-Net's rule)


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
    """(new, old): sample i of the result is row i times the old samples; both axes cover the same length."""
    identity = np.eye(old)
    weights = ndimage.zoom(identity, (new / old, 1), order=order, mode="nearest", grid_mode=True)
    return np.asarray(weights, dtype=np.float32)


def linear_taps(old: int, new: int, order: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Of each new sample the two old ones that `resample` mixes, and the weight of the second; equal if it takes only one.

    Args:
        order: 0 or 1; splines of a higher order mix more samples.
    """
    weights = _axis_weights(old, new, order)
    is_used = weights > 1e-6
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
    shrinking_first = sorted(range(len(shape)), key=lambda axis: shape[axis] / array.shape[first + axis])
    for axis in shrinking_first:
        old, new = array.shape[first + axis], shape[axis]
        if old != new:
            result = _mixed(result, _axis_weights(old, new, orders[axis]), first + axis)
    return np.ascontiguousarray(result)


def _mixed(array: Volume, weights: NDArray[np.float32], axis: int) -> Volume:
    """One axis by a matrix, in blocks along another: BLAS copies what does not lie in order, which would be all of it."""
    if array.ndim == 1:
        return weights @ array
    result = np.empty((*array.shape[:axis], len(weights), *array.shape[axis + 1 :]), np.float32)
    across = max((other for other in range(array.ndim) if other != axis), key=lambda other: array.shape[other])
    step = max(1, BLOCK_VOXELS * array.shape[across] // array.size)
    for begin in range(0, array.shape[across], step):
        block = (*(slice(None),) * across, slice(begin, begin + step))
        product = np.tensordot(weights, np.moveaxis(array[block], axis, 0), axes=1)
        result[block] = np.moveaxis(product, 0, axis)
    return result


def resample_labels(segmentation: Segmentation, shape: Shape, orders: Sequence[int]) -> Segmentation:
    """The label that is heaviest at each new voxel after resampling every label's own mask; ties go to the lower label."""
    if tuple(segmentation.shape) == tuple(shape):
        return segmentation
    heaviest = np.zeros(shape, dtype=np.float32)
    result = np.zeros(shape, dtype=segmentation.dtype)
    for label in np.unique(segmentation):
        weight = resample((segmentation == label).astype(np.float32), shape, orders)
        wins = weight > heaviest + 1e-6
        result[wins] = label
        heaviest[wins] = weight[wins]
    return result
