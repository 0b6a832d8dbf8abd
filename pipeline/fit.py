"""A plan by estimate to the plan that the real device can hold, by trying; what a try is, the caller decides.

Knows neither files nor networks: only sizes, estimates and measurements in GiB.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

MOST_TRIES = 6
LARGEST_STEP = 0.9  # of the estimate, from one plan to a smaller one
SMALLEST_ESTIMATE = 0.01  # of the memory: below, patch and batch are as small as the rules make them
FULL_ENOUGH = 0.8  # share of a GPU's memory


class Sized(Protocol):
    """What every plan has."""

    @property
    def patch_size(self) -> tuple[int, ...]: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def memory_estimate_gib(self) -> float: ...


AnyPlan = TypeVar("AnyPlan", bound=Sized)


@dataclass(frozen=True)
class Measured:
    """The peak memory of one training step on a kind of device, `cuda` or `cpu`; by width the time and the fastest form.

    Nothing is timed where the memory is too large.
    """

    gib: float
    device: str
    seconds_per_sample: dict[int, float] = field(default_factory=dict)
    forms: dict[int, str] = field(default_factory=dict)


def fit_to_memory(
    replan: Callable[[float], AnyPlan], measure: Callable[[AnyPlan], Measured | None], memory_gib: float
) -> tuple[AnyPlan, Measured | None]:
    """The largest plan tried whose measured memory is within `memory_gib`, and what was measured.

    Each try plans anew for the estimate that, corrected by the last measurement, fills the memory: the rules decide
    whether patch or batch gives way. On a CPU nothing grows, for time is scarcer there than memory. Where sizes are set or
    as small as they get, the last plan is returned although it takes more, or with None if it could not be tried.

    Args:
        replan: GiB that the estimate may reach, to a plan.
        measure: a plan to what it takes; None if there was not enough memory to try.
    """
    plan = replan(memory_gib)
    measured = measure(plan)
    if measured is not None and measured.gib <= memory_gib:
        return _grown(plan, measured, replan, measure, memory_gib) if measured.device == "cuda" else (plan, measured)
    for _ in range(MOST_TRIES):
        share = memory_gib / measured.gib if measured else 0.5
        if (smaller := _smaller(plan, min(share, LARGEST_STEP) * plan.memory_estimate_gib, replan, memory_gib)) is None:
            break
        plan, measured = smaller, measure(smaller)
        if measured is not None and measured.gib <= memory_gib:
            break
    return plan, measured


def _smaller(
    plan: AnyPlan, estimate_gib: float, replan: Callable[[float], AnyPlan], memory_gib: float
) -> AnyPlan | None:
    """The next smaller plan from `estimate_gib` down; None if there is none."""
    while estimate_gib > SMALLEST_ESTIMATE * memory_gib:
        if not _is_same(smaller := replan(estimate_gib), plan):
            return smaller
        estimate_gib *= LARGEST_STEP
    return None


def _grown(
    plan: AnyPlan,
    measured: Measured,
    replan: Callable[[float], AnyPlan],
    measure: Callable[[AnyPlan], Measured | None],
    memory_gib: float,
) -> tuple[AnyPlan, Measured]:
    """Larger plans while they fit, until the memory is full enough."""
    for _ in range(MOST_TRIES):
        if measured.gib >= FULL_ENOUGH * memory_gib:
            break
        larger = replan(plan.memory_estimate_gib * memory_gib / measured.gib)
        if _is_same(larger, plan) or (found := measure(larger)) is None or found.gib > memory_gib:
            break
        plan, measured = larger, found
    return plan, measured


def _is_same(one: Sized, other: Sized) -> bool:
    return (one.patch_size, one.batch_size) == (other.patch_size, other.batch_size)
