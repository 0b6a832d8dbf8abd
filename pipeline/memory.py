"""What predicting a scan takes, known before it starts: for the scheduler, and to choose windows that fit.

Estimates lie above what was measured, by little; `tests/test_memory.py` holds them. Knows no files. Imports no torch.
"""

from collections.abc import Sequence
from math import prod

from pipeline.plan import Plan

FLOAT = 4  # bytes
MAPS_AT_ONCE = 6.0  # of the first stage's features, while a network predicts: skips, and what norms and joins copy
OUTPUTS_AT_ONCE = 2.5  # of a window's outputs: as computed, and as added up
ROWS_AT_ONCE = 4  # of the prepared grid, all outputs: two, their mixture and where that is stored
MAPS_OF_A_ROW = 8  # of a row of the scan along the plan's axes, while one label after the other is interpolated
MASKS_AT_ONCE = 4  # of the scan: along the plan's axes, as RAS, as the file has it, and compressed
SCANS_AT_ONCE = 3  # of one channel in float32, besides all channels: as normalised, and half resampled
PROCESS_BYTES = 600 * 2**20  # torch, MONAI and what else a stage imports


def window_bytes(plan: Plan, width: int, num_voxels: int) -> int:
    """While the network of this width predicts windows of so many voxels together."""
    inputs = plan.num_inputs * (
        2 if plan.previous else 1
    )  # a cascade's are made from the mask and joined to the channels
    per_voxel = MAPS_AT_ONCE * plan.features(width)[0] + OUTPUTS_AT_ONCE * plan.num_outputs + inputs
    return round(FLOAT * per_voxel * num_voxels)


def slab_bytes(plan: Plan, length: int, shape: Sequence[int]) -> int:
    """The sum over windows of `length` rows of a prepared scan (D, H, W), and the rows that are interpolated."""
    return FLOAT * plan.num_outputs * (length + ROWS_AT_ONCE) * prod(shape[1:])


def restore_bytes(plan: Plan, cropped_shape: Sequence[int]) -> int:
    """A row of the scan along the plan's axes, where it is interpolated, and the mask."""
    value_bytes = FLOAT if plan.task == "regression" else 1 if max(plan.labels) < 256 else 2
    row = FLOAT * MAPS_OF_A_ROW * prod(cropped_shape[1:])
    return row + MASKS_AT_ONCE * value_bytes * prod(cropped_shape)


def prepare_bytes(plan: Plan, scan_shape: Sequence[int], shape: Sequence[int]) -> int:
    """Reading a scan, and preparing it as (D, H, W)."""
    return FLOAT * ((plan.num_channels + SCANS_AT_ONCE) * prod(scan_shape) + plan.num_channels * prod(shape))
