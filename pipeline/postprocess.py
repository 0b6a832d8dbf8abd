"""A label map cleaned label by label: holes filled, components removed; and what each way to clean would score.

Arrays in, arrays and numbers out. Whether cleaning helps is for `choice` to say; knows no files. Imports no torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.images import Segmentation, Spacing
from pipeline.metrics import Mask
from pipeline.records import BACKGROUND, Cohort, Target

Box = tuple[slice, ...]
Scores = NDArray[np.float32]  # higher is better; NaN where neither reference nor mask has anything
NEIGHBOURS = np.ones((3, 3, 3))  # 26: voxels that share a corner belong together
# Sizes that may be asked of a component, mm3; all cases are scored with all of them before any is chosen.
SIZES_MM3 = tuple(float(f"{digit}e{power}") for power in range(-3, 6) for digit in (1, 3))


@dataclass(frozen=True)
class Operation:
    """Done to one label or region in this order: fill holes, remove components under `min_mm3`, keep the largest one."""

    fill_holes: bool = False
    min_mm3: float = 0.0
    keep_largest: bool = False

    def words(self) -> str:
        return ", ".join(
            text
            for text, is_done in (
                ("holes filled", self.fill_holes),
                (f"components under {self.min_mm3:g} mm³ removed", self.min_mm3 > 0),
                ("largest component kept", self.keep_largest),
            )
            if is_done
        )


Operations = Mapping[int | str, Operation]  # by label, or by name of a region; without those that stay as they are

NOTHING = Operation()
OPTIONS = tuple(  # the gentlest first
    replace(removal, fill_holes=fills)
    for fills in (False, True)
    for removal in (NOTHING, *(Operation(min_mm3=size) for size in SIZES_MM3), Operation(keep_largest=True))
)


def postprocess(mask: Segmentation, spacing_mm: Spacing, operations: Operations, cohort: Cohort) -> Segmentation:
    """(I, J, K): a cleaned copy of a mask; what is removed becomes what lies around its label.

    A region is cleaned before the one that it lies in, whose components go with all that is in them; a label before the
    ones that stand before it, so that holes that it leaves in them can be filled. Labels that are absent stay absent.
    """
    clean, voxel_mm3, boxes = mask.copy(), math.prod(spacing_mm), ndimage.find_objects(mask)
    for place, target in reversed([*enumerate(cohort.targets)]):
        operation, box = operations.get(target.label, NOTHING), _box(boxes, target)
        if operation == NOTHING or box is None:
            continue
        around, inside = _around(place, cohort), clean[box]
        region = _has(inside, target.values)
        if operation.fill_holes:
            filled = _filled(region, _has(inside, around))
            inside[filled & ~region] = target.painted
            region = filled
        parts, num_parts = ndimage.label(region, NEIGHBOURS)
        is_kept = kept(_sizes(parts, region, num_parts) * voxel_mm3, operation)
        inside[_look_up(np.array([False, *~is_kept]), parts)] = around[-1]
    return clean


def kept(sizes_mm3: NDArray[np.floating], operation: Operation) -> NDArray[np.bool_]:
    """(N,): which components stay; of equally large ones the first is the largest. None of none."""
    stays = sizes_mm3 >= operation.min_mm3
    if operation.keep_largest and stays.any():
        stays &= np.arange(len(sizes_mm3)) == sizes_mm3.argmax()
    return stays


def component_sizes(segmentation: Segmentation, cohort: Cohort) -> list[NDArray[np.int64]]:
    """Of each target the voxels of its components; (0,) for one that is absent."""
    sizes, boxes = [], ndimage.find_objects(segmentation)
    for target in cohort.targets:
        box = _box(boxes, target)
        region = _has(segmentation[box] if box else np.empty((0, 0, 0), segmentation.dtype), target.values)
        parts, num_parts = ndimage.label(region, NEIGHBOURS)
        sizes.append(_sizes(parts, region, num_parts))
    return sizes


def score_options(
    reference: Segmentation,
    prediction: Segmentation,
    num_reference: Sequence[int],
    *,
    spacing_mm: Spacing,
    options: Sequence[Operation],
    cohort: Cohort,
) -> Scores:
    """(targets, options): the DSC of each target if it alone were cleaned by each option.

    Components are found once, with and without holes; every option is then a choice among them. Voxels with the ignore
    label belong to components, yet count for nothing.

    Args:
        num_reference: voxels that each target has in the reference.
    """
    voxel_mm3, boxes = math.prod(spacing_mm), ndimage.find_objects(prediction)
    scores = np.full((len(cohort.targets), len(options)), np.nan, np.float32)
    for place, (target, num_voxels) in enumerate(zip(cohort.targets, num_reference, strict=True)):
        box = _box(boxes, target)
        if box is None:
            scores[place] = 0 if num_voxels else np.nan
            continue
        inside, truth = prediction[box], reference[box]
        region = _has(inside, target.values)
        regions = {False: region}
        if any(option.fill_holes for option in options):
            regions[True] = _filled(region, _has(inside, _around(place, cohort)))
        for fills, filled in regions.items():
            parts, num_parts = ndimage.label(filled, NEIGHBOURS)
            sizes_mm3 = _sizes(parts, filled, num_parts) * voxel_mm3
            counted = _sizes(parts, filled & (truth != cohort.ignore_label), num_parts)
            shared = _sizes(parts, filled & _has(truth, target.values), num_parts)
            for number, option in enumerate(options):
                if option.fill_holes == fills:
                    stays = kept(sizes_mm3, option)
                    if both := num_voxels + counted[stays].sum():
                        scores[place, number] = 2 * shared[stays].sum() / both
    return scores


def _box(boxes: Sequence[Box | None], target: Target) -> Box | None:
    """Around all voxels of a target; None if there are none."""
    found = [box for value in target.values if value <= len(boxes) and (box := boxes[value - 1])]
    if not found:
        return None
    return tuple(
        slice(min(part.start for part in parts), max(part.stop for part in parts)) for parts in zip(*found, strict=True)
    )


def _has(segmentation: Segmentation, values: Sequence[int]) -> Mask:
    """Where one of a few values is; `np.isin` takes 12 bytes of memory for each voxel that it finds."""
    found = segmentation == values[0]
    for value in values[1:]:
        found |= segmentation == value
    return found


def _around(place: int, cohort: Cohort) -> list[int]:
    """What a target may take voxels from: the background, then the regions that it lies in, the smallest last."""
    targets, own = cohort.targets, set(cohort.targets[place].values)
    return [BACKGROUND, *(one.painted for one in targets[:place] if own < set(one.values))]


def _filled(region: Mask, is_free: Mask) -> Mask:
    """With the free voxels of its holes: what is cut off, face by face, from the edge of the array. None in a single slice."""
    parts, num_parts = ndimage.label(~region)
    is_hole = np.ones(num_parts + 1, np.bool_)
    is_hole[0] = False  # the region
    for axis in range(region.ndim):
        is_hole[parts.take([0, -1], axis)] = False
    return region | (_look_up(is_hole, parts) & is_free)


def _sizes(parts: NDArray[np.int32], region: Mask, num_parts: int) -> NDArray[np.int64]:
    """(N,): how many voxels of a region each of the components 1 to N has."""
    return np.bincount(parts[region], minlength=num_parts + 1)[1:]


def _look_up(table: NDArray[np.bool_], parts: NDArray[np.int32]) -> Mask:
    """By plane: indices of a whole body, 8 bytes each, outweigh it."""
    found = np.empty(parts.shape, np.bool_)
    for plane, own in zip(parts, found, strict=True):
        own[...] = table[plane]
    return found
