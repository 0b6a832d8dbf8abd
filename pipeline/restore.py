"""Predictions on prepared grids back to the scan's grid, row by row: memory holds a few rows, never labels x volume.

Interpolation is linear, which lets most voxels do without it: where one label is the likeliest at all corners around a
voxel, it is the likeliest in between. Only the others, near borders, are interpolated. Imports no torch.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

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
    """The mean of rows (L, h, w) to (H, W): the place of the likeliest label, or one after that of the last region."""
    winner = _last_region if has_regions else _likeliest
    places = np.arange(len(rows[0]) + 1, dtype=np.uint16) if has_regions else _possible(rows)
    if not has_regions:
        rows = [row[places] for row in rows]
    corners = [
        found.take(line, axis=0).take(column, axis=1)
        for found, (across, along) in zip(map(winner, rows), plane_taps, strict=True)
        for line, column in product((across.first, across.second), (along.first, along.second))
    ]
    found = corners[0]
    unsure = np.flatnonzero(np.any([corner != found for corner in corners[1:]], axis=0))
    if unsure.size:
        lines, columns = np.divmod(unsure, found.shape[1])
        total = np.zeros((len(rows[0]), len(unsure)), np.float32)
        for row, (across, along) in zip(rows, plane_taps, strict=True):
            flat = row.reshape(len(row), -1)
            for line, line_weight in _ends(across, lines):
                for column, column_weight in _ends(along, columns):
                    total += flat[:, line * row.shape[2] + column] * (line_weight * column_weight)
        found.ravel()[unsure] = winner(total / np.float32(len(rows)))
    return places[found]


def _possible(rows: Sequence[Volume]) -> Places:
    """Places of the labels that can be the likeliest somewhere: the winner of L has 1 / L, but for rounding."""
    highest = np.max([row.max(axis=(1, 2)) for row in rows], axis=0)
    return np.flatnonzero(highest >= 0.5 / len(highest)).astype(np.uint16)


def _likeliest(row: Volume) -> Places:
    return row.argmax(axis=0).astype(np.uint16)


def _last_region(row: Volume) -> Places:
    """(R, …) to (…): one after the place of the last region of more than 0.5, which is painted over the others; 0 if none."""
    last = np.zeros(row.shape[1:], np.uint16)
    for place, probability in enumerate(row, start=1):
        last[probability > 0.5] = place
    return last


def _ends(taps: Taps, places: NDArray[np.intp]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
    weight = taps.weight[places]
    yield taps.first[places], 1 - weight
    yield taps.second[places], weight
