"""The windows that a network reads a scan through: how large, where, how they are weighed, and in which mirrored copies.

A `Setting` says it in patches, as the user does; `window_of` makes it voxels for one scan and the memory that there is.
Imports no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, combinations
from math import ceil, prod
from pathlib import Path

from pipeline import records
from pipeline.memory import FLOAT, PROCESS_BYTES, restore_bytes, slab_bytes, window_bytes
from pipeline.mirrors import Mirror
from pipeline.plan import Plan
from pipeline.topology import Topology

VOXELS_AT_ONCE = {"cpu": 500_000, "cuda": 4_000_000}  # in one call of the network


@dataclass(frozen=True)
class Setting:
    """Windows of `window` patches along each axis, or with None as large as the scan; memory may make them smaller.

    `batch` is how many go into one call of the network; 0: by their size. To compile the network takes `compile_s`, which
    saves `saved_s` in each scan; None: it is not compiled.
    """

    window: float | None
    overlap: float
    mirror: bool
    batch: int = 0
    compile_s: float | None = None
    saved_s: float = 0.0

    def for_scans(self, count: int) -> "Setting":
        """Compiled only if so many scans pay for it."""
        is_worth = self.compile_s is not None and self.saved_s * count > self.compile_s
        return self if is_worth else replace(self, compile_s=None)


@dataclass(frozen=True)
class Window:
    """Size in voxels along the plan's patch axes, overlap as a part of it, and the mirrored copies to average over."""

    size: tuple[int, ...]
    overlap: float
    mirrors: tuple[Mirror, ...] = ()
    batch: int = 0
    is_compiled: bool = False

    @property
    def copies(self) -> list[tuple[Mirror, ...]]:
        """Every subset of the mirrors, the empty one first."""
        counts = range(len(self.mirrors) + 1)
        return list(chain.from_iterable(combinations(self.mirrors, count) for count in counts))


def read_setting(path: Path) -> Setting:
    content = records.read_json(path)
    return Setting(**{field.name: content[field.name] for field in fields(Setting)})


def window_of(
    setting: Setting, plan: Plan, width: int, shape: Sequence[int], mirrors: Sequence[Mirror], memory_gib: float
) -> Window:
    """For a prepared scan of (D, H, W): a window no larger than the scan or memory needs, no smaller than the plan's patch."""
    divisors = Topology(plan.strides, plan.kernels, plan.patch_size).divisors
    scan = shape[-plan.dims :]
    wanted = scan if setting.window is None else [setting.window * edge for edge in plan.patch_size]
    size = [
        max(patch, divisor * ceil(min(edge, most) / divisor))
        for edge, most, patch, divisor in zip(wanted, scan, plan.patch_size, divisors, strict=True)
    ]
    while window_and_slab_bytes(plan, width, size, shape) > memory_gib * 2**30:
        spare = [edge / patch for edge, patch in zip(size, plan.patch_size, strict=True)]
        axis = spare.index(max(spare))
        if size[axis] == plan.patch_size[axis]:
            break
        size[axis] = max(plan.patch_size[axis], size[axis] - divisors[axis])
    copies = tuple(mirrors) if setting.mirror else ()
    return Window(tuple(size), setting.overlap, copies, setting.batch, is_compiled=setting.compile_s is not None)


def window_and_slab_bytes(plan: Plan, width: int, size: Sequence[int], shape: Sequence[int], batch: int = 0) -> int:
    num_windows = batch or num_at_once(size, "cpu")
    num_slices = min(num_windows, shape[0])
    length = size[0] if plan.dims == 3 else num_slices
    num_voxels = prod(size) * (num_windows if plan.dims == 3 else num_slices)
    padded = (shape[0], *(max(edge, own) for edge, own in zip(shape[-2:], size[-2:], strict=True)))
    return window_bytes(plan, width, num_voxels) + slab_bytes(plan, length, padded)


def num_at_once(size: Sequence[int], device_type: str) -> int:
    """Windows, or slices of a 2D plan, in one call of the network."""
    return max(1, VOXELS_AT_ONCE[device_type] // prod(size))


def predict_bytes(
    plan: Plan, width: int, setting: Setting, shape: Sequence[int], cropped_shape: Sequence[int], memory_gib: float
) -> int:
    """Of the process that predicts a scan: prepared (D, H, W), and its crop along the same axes, in voxels."""
    size = window_of(setting, plan, width, shape, (), memory_gib).size
    image = FLOAT * len(plan.channels) * prod(shape)
    work = window_and_slab_bytes(plan, width, size, shape, setting.batch)
    return PROCESS_BYTES + image + work + restore_bytes(plan, cropped_shape)


def places(window: Window, plan: Plan, shape: Sequence[int]) -> list[list[int]]:
    """Where the windows start in a scan of (D, H, W), along each axis of the plan's patch."""
    axes = zip(shape[-plan.dims :], window.size, strict=True)
    return [window_starts(edge, size, window.overlap) for edge, size in axes]


def num_voxels(window: Window, plan: Plan, shape: Sequence[int]) -> int:
    """That the network reads in a scan of (D, H, W): the work, whatever the machine."""
    num_windows = prod(map(len, places(window, plan, shape)))
    return num_windows * len(window.copies) * prod(window.size) * (shape[0] if plan.dims == 2 else 1)


def window_starts(edge: int, size: int, overlap: float) -> list[int]:
    """The fewest evenly spaced windows that overlap by at least so much of their size; source: nnU-Net v2."""
    if size >= edge:
        return [0]
    num_steps = ceil((edge - size) / max(1, size * (1 - overlap)))
    return [round((edge - size) * index / num_steps) for index in range(num_steps + 1)]
