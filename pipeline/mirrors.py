"""Which axes of a patch may be mirrored, and what changes sides then, from `train.mirror` and a plan.

A left kidney seen in a mirror is a right kidney: labels that stand for one side are swapped with those of the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.plan import Plan

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Mirror:
    """A spatial axis of a patch, counted from 0, and what a flip along it swaps: class indices, and maps of the network."""

    axis: int
    swaps: Pairs = ()
    output_swaps: Pairs = ()


def find_mirrors(plan: Plan, wanted: Sequence[str | Mapping]) -> tuple[Mirror, ...]:
    """The mirrors that a patch of the plan has: a 2D patch lacks the first of the plan's axes.

    Args:
        wanted: patient axes such as `x`, or `{axis: x, swap: [[1, 2]]}` with pairs of label values.

    Raises:
        ConfigError: a label that the plan does not have, a region that would become none of the regions, or a regression,
            whose values have no sides.
    """
    patch_axes = plan.axes[-plan.dims :]
    mirrors = []
    for entry in wanted:
        axis, pairs = (entry, []) if isinstance(entry, str) else (entry["axis"], entry.get("swap", []))
        if pairs and plan.task == "regression":
            raise ConfigError(
                f"config: train.mirror swaps labels along {axis}, yet task is regression, which has none. "
                f"Write `{axis}` without `swap`."
            )
        swaps = tuple((_class_index(plan, axis, first), _class_index(plan, axis, second)) for first, second in pairs)
        output_swaps = _region_swaps(plan, axis, pairs) if plan.regions else swaps
        if axis in patch_axes:
            mirrors.append(Mirror(patch_axes.index(axis), swaps, output_swaps))
    return tuple(mirrors)


def _class_index(plan: Plan, axis: str, label: int) -> int:
    if label not in plan.labels:
        raise ConfigError(
            f"config: train.mirror swaps label {label} along {axis}, yet {plan.configuration} knows the labels "
            f"{', '.join(map(str, plan.labels))}. Correct the pair or remove it."
        )
    return plan.labels.index(label)


def _region_swaps(plan: Plan, axis: str, pairs: Sequence[Sequence[int]]) -> Pairs:
    """A region becomes the one that holds the swapped labels."""
    partner = {first: second for pair in pairs for first, second in (pair, reversed(pair))}
    regions = [set(region) for region in plan.regions]
    swaps = []
    for index, region in enumerate(regions):
        mirrored = {partner.get(label, label) for label in region}
        if mirrored not in regions:
            raise ConfigError(
                f"config: train.mirror along {axis} turns the region of labels {sorted(region)} into {sorted(mirrored)}, "
                "which is none of `regions`. Add that region, or do not mirror this axis."
            )
        if (other := regions.index(mirrored)) > index:
            swaps.append((index, other))
    return tuple(swaps)
