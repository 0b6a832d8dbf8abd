"""A plan and a training budget to width, patch, batch and steps: the widest network that the budget can still teach.

Plain arithmetic on what `plan` measured; deterministic, so that all folds of a configuration train the same network.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from pipeline.architectures import ARCHITECTURES
from pipeline.plan import Plan
from pipeline.topology import BASE_FEATURES, SMALLEST_BATCH, Topology

STEPS_PER_EPOCH = 250  # nnU-Net's epoch
WANTED_SAMPLES = 3000  # patches that a network should see before it is worth making it wider
WANTED_STEPS = 1000  # below this many steps, a smaller batch teaches more than a larger one
FEWEST_STEPS = 300  # below this many, smaller patches teach more than large ones
LEAST_EDGES = 2  # voxels of the coarsest feature map per axis, down to which a patch may shrink


@dataclass(frozen=True)
class Budget:
    """Train `width` with `batch_size` patches per step, until `steps` steps or `seconds` have passed, whichever is set."""

    width: int
    patch_size: tuple[int, ...]
    batch_size: int
    steps: int | None
    seconds: float | None
    reason: str

    def progress(self, step: int, elapsed_s: float) -> float:
        """The share of the budget that is spent, 0 to 1."""
        share = step / self.steps if self.steps else elapsed_s / (self.seconds or 1)
        return min(share, 1.0)


def fit_budget(plan: Plan, train: Mapping[str, Any]) -> Budget:
    """`train` is the section of the configuration: it holds one of `minutes`, `epochs` and `iterations`."""
    widest = max(plan.widths, key=lambda width: width.features)
    if "minutes" not in train:
        steps = train["iterations"] if "iterations" in train else round(train["epochs"] * STEPS_PER_EPOCH)
        reason = f"{steps} steps are set, at the planned size"
        return Budget(widest.features, plan.patch_size, plan.batch_size, steps, None, reason)
    seconds = 60.0 * train["minutes"]
    for width in sorted(plan.widths, key=lambda width: -width.features):
        samples = seconds / width.seconds_per_sample
        if samples >= WANTED_SAMPLES:
            break
    is_fixed = ARCHITECTURES[plan.network].has_fixed_patch
    patch = plan.patch_size if is_fixed else shrink(plan, FEWEST_STEPS * SMALLEST_BATCH / samples)
    samples *= prod(plan.patch_size) / prod(patch)
    batch = int(max(SMALLEST_BATCH, min(plan.batch_size, samples // WANTED_STEPS)))
    reason = (
        f"{train['minutes']:g} minutes hold about {samples:.0f} patches of {' x '.join(map(str, patch))} at width "
        f"{width.features} ({WANTED_SAMPLES} wanted, up to width {BASE_FEATURES}): {samples / batch:.0f} steps of {batch}"
    )
    return Budget(width.features, patch, batch, None, seconds, reason)


def shrink(plan: Plan, factor: float) -> tuple[int, ...]:
    """The planned patch with about `factor` times fewer voxels, if that is more than 1: its longest edges are halved.

    Every stride still divides it, and its coarsest feature map keeps two voxels along each axis that has so many.
    """
    patch = list(plan.patch_size)
    divisors = Topology(plan.strides, plan.kernels, plan.patch_size).divisors
    while prod(plan.patch_size) / prod(patch) < factor:
        axis = max(range(plan.dims), key=lambda axis: patch[axis] / divisors[axis])
        if patch[axis] // divisors[axis] // 2 < LEAST_EDGES:
            break
        patch[axis] = patch[axis] // divisors[axis] // 2 * divisors[axis]
    return tuple(patch)
