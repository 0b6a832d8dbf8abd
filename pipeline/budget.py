"""A plan and a training budget to width, batch and steps: the widest network that the budget can still teach.

Plain arithmetic on what `plan` measured; deterministic, so that all folds of a configuration train the same network.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.plan import Plan
from pipeline.topology import BASE_FEATURES

STEPS_PER_EPOCH = 250  # nnU-Net's epoch
WANTED_SAMPLES = 3000  # patches that a network should see before it is worth making it wider
WANTED_STEPS = 1000  # below this many steps, a smaller batch teaches more than a larger one
SMALLEST_BATCH = 2


@dataclass(frozen=True)
class Budget:
    """Train `width` with `batch_size` patches per step, until `steps` steps or `seconds` have passed, whichever is set."""

    width: int
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
        return Budget(widest.features, plan.batch_size, steps, None, f"{steps} steps are set, at the planned size")
    seconds = 60.0 * train["minutes"]
    for width in sorted(plan.widths, key=lambda width: -width.features):
        samples = seconds / width.seconds_per_sample
        if samples >= WANTED_SAMPLES:
            break
    batch = int(max(SMALLEST_BATCH, min(plan.batch_size, samples // WANTED_STEPS)))
    reason = (
        f"{train['minutes']:g} minutes hold about {samples:.0f} patches at width {width.features} "
        f"({width.seconds_per_sample:.3f} s each; {WANTED_SAMPLES} wanted, up to width {BASE_FEATURES}): "
        f"{samples / batch:.0f} steps of {batch}"
    )
    return Budget(width.features, batch, None, seconds, reason)
