"""Predictions on prepared grids back to the scan's grid, row by row: memory holds a few rows, never labels x volume.

Interpolation is linear, so a label can be the likeliest only near voxels that give it some probability: each label is
interpolated where it may win, and nowhere else. Imports no torch.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.images import Segmentation, Volume
from pipeline.plan import RAS_AXES, Plan
from pipeline.preprocess import Placement
from pipeline.regions import painted_values
from pipeline.resample import interpolation_orders, linear_taps

STEPS = 255  # of a probability in one byte


Places = NDArray[np.integer]  # of labels among those of the plan, or of regions; in two bytes, for speed


@dataclass(frozen=True)
class Prediction:
    """Probabilities or values of one scan on a prepared grid: slabs (L, d, H, W) in order along the first axis, D in all.

    float32, or uint8 in steps of 1/255. `shape` is (D, H, W), along the placement's axes.
    """

    slabs: Iterable[NDArray]
    shape: tuple[int, ...]
    placement: Placement

    def rows(self) -> Iterator[Volume]:
        """(L, H, W) float32, one after the other."""
        for slab in self.slabs:
            for row in slab.swapaxes(0, 1):
                yield row / np.float32(STEPS) if row.dtype == np.uint8 else row

    def turned(self, axes: str) -> "Prediction":
        """The same along other axes; only then it is held in memory as a whole."""
        own = self.placement.axes
        if axes == own:
            return self
        order = [own.index(axis) for axis in axes]
        whole = np.concatenate([slab.copy() for slab in self.slabs], axis=1).transpose(0, *(axis + 1 for axis in order))
        placement = replace(
            self.placement,
            axes=axes,
            cropped_shape=tuple(self.placement.cropped_shape[axis] for axis in order),
            spacing_mm=tuple(self.placement.spacing_mm[axis] for axis in order),
        )
        return Prediction([whole], whole.shape[1:], placement)


@dataclass(frozen=True)
class Taps:
    """Of each new voxel of an axis the two old ones that it lies between, and the weight of the second."""

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    weight: NDArray[np.float32]

    def cut(self, part: slice) -> "Taps":
        return Taps(self.first[part], self.second[part], self.weight[part])

    def reached(self, first: int, last: int) -> tuple[int, int]:
        """Start and stop of the new voxels that the old ones `first` to `last` have a part in."""
        return int(np.searchsorted(self.second, first)), int(np.searchsorted(self.first, last, side="right"))


def restore_labels(predictions: Sequence[Prediction], plan: Plan) -> Segmentation:
    """(I, J, K) label values on the scan's RAS grid: what the mean of the predictions finds likeliest.

    Regions of more than 0.5 are painted in order. Outside the crop all is background.
    """
    values = np.array([0, *painted_values(plan.regions)] if plan.regions else plan.labels)
    small = values.astype(np.min_scalar_type(int(values.max())))
    predictions = [prediction.turned(predictions[0].placement.axes) for prediction in predictions]
    plane_taps = [taps_of(prediction)[1:] for prediction in predictions]
    placement = predictions[0].placement
    cropped = np.zeros(placement.cropped_shape, small.dtype)
    for painted, rows in zip(cropped, zip(*map(rows_of_scan, predictions), strict=True), strict=True):
        painted[...] = small[_found(rows, plane_taps, has_regions=bool(plan.regions))]
    return laid_out(cropped, placement)


def restore_values(predictions: Sequence[Prediction]) -> Volume:
    """(I, J, K) on the scan's RAS grid: the mean of the first output of the predictions, 0 outside the crop."""
    predictions = [prediction.turned(predictions[0].placement.axes) for prediction in predictions]
    plane_taps = [taps_of(prediction)[1:] for prediction in predictions]
    placement = predictions[0].placement
    cropped = np.zeros(placement.cropped_shape, np.float32)
    for values, rows in zip(cropped, zip(*map(rows_of_scan, predictions), strict=True), strict=True):
        for row, (across, along) in zip(rows, plane_taps, strict=True):
            values += between(between(row[0], across, axis=0), along, axis=1) / len(predictions)
    return laid_out(cropped, placement)


def laid_out(cropped: NDArray, placement: Placement) -> NDArray:
    """The crop along the plan's axes to the whole scan in RAS order, 0 around it."""
    whole = np.zeros(placement.shape_ras, cropped.dtype)
    back = [placement.axes.index(axis) for axis in RAS_AXES]
    whole[tuple(slice(*part) for part in placement.box)] = cropped.transpose(back)
    return whole


def taps_of(prediction: Prediction) -> list[Taps]:
    """Per axis; along the single coarse axis of an anisotropic grid the nearest voxel is taken."""
    placement, shape = prediction.placement, prediction.shape
    sizes = zip(placement.spacing_mm, placement.cropped_shape, shape, strict=True)
    prepared_mm = tuple(own * old / new for own, old, new in sizes)
    orders = interpolation_orders(prepared_mm, placement.spacing_mm, order=1)
    axes = zip(shape, placement.cropped_shape, orders, strict=True)
    return [Taps(*linear_taps(old, new, order)) for old, new, order in axes]


def between(array: Volume, taps: Taps, axis: int) -> Volume:
    if not taps.weight.any():
        return array.take(taps.first, axis)
    weight = np.expand_dims(taps.weight, tuple(range(1, array.ndim - axis)))
    first = array.take(taps.first, axis)
    return first + weight * (array.take(taps.second, axis) - first)


def rows_of_scan(prediction: Prediction) -> Iterator[Volume]:
    """(L, H, W), still prepared in plane, for every row that the crop has along its first axis; two rows are in memory."""
    taps, source = taps_of(prediction)[0], prediction.rows()
    index, row, before = 0, next(source), None
    for first, second, weight in zip(taps.first, taps.second, taps.weight, strict=True):
        while index < second:
            before, row, index = row.copy(), next(source), index + 1  # the next slab may take the memory of this one
        if first == second or weight == 1 or before is None:
            yield row
        else:
            yield before + weight * (row - before)
    for _ in source:  # whoever stores the slabs on their way has to see the last one
        pass


def _found(rows: Sequence[Volume], plane_taps: Sequence[Sequence[Taps]], *, has_regions: bool) -> Places:
    """The mean of rows (L, h, w) to (H, W): the place of the likeliest label, or one after that of the last region.

    Map by map, as each fits into a core's cache, and only where it may win: the likeliest of L labels has 1 / L, but for
    rounding.
    """
    floor = 0.5 if has_regions else 0.5 / len(rows[0])
    shape = tuple(len(taps.first) for taps in plane_taps[0])
    highest, found = np.full(shape, floor, np.float32), np.zeros(shape, np.uint16)
    for place, maps in enumerate(zip(*rows, strict=True)):
        if (box := _reach(maps, plane_taps, floor)) is None:
            continue
        values = []
        for one, taps in zip(maps, plane_taps, strict=True):
            across, along = (axis.cut(part) for axis, part in zip(taps, box, strict=True))
            values.append(between(between(one, across, axis=0), along, axis=1))
        value = values[0] if len(values) == 1 else np.mean(values, axis=0)
        np.copyto(found[box], place + has_regions, where=value > highest[box])
        if not has_regions:
            np.maximum(highest[box], value, out=highest[box])
    return found


def _reach(maps: Sequence[NDArray], plane_taps: Sequence[Sequence[Taps]], floor: float) -> tuple[slice, slice] | None:
    """Lines and columns of the result that some map above `floor` has a part in."""
    boxes = []
    for one, taps in zip(maps, plane_taps, strict=True):
        is_above = one > floor
        if is_above.any():
            inside = (np.flatnonzero(is_above.any(axis=axis)) for axis in (1, 0))
            boxes.append([part.reached(there[0], there[-1]) for part, there in zip(taps, inside, strict=True)])
    if not boxes:
        return None
    (tops, bottoms), (lefts, rights) = (zip(*sides, strict=True) for sides in zip(*boxes, strict=True))
    return slice(min(tops), max(bottoms)), slice(min(lefts), max(rights))
