"""The skip connections of a network: where they are, and which of them carry anything.

Needs to know no architecture, for it watches the operations of a network from outside. Draws nothing from torch's random
state, changes no weight, and leaves a network in the mode in which it was.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from pipeline import records
from pipeline.nn.forms import Form

CONSTANT = 1e-3  # a channel that varies by less, as a share of the skip's largest value, says nothing: it is dead
Kind = Literal["joined", "added"]
MEETINGS: dict[str, Kind] = {
    **dict.fromkeys(("cat", "concat", "mul", "__mul__", "__rmul__", "mul_", "__imul__"), "joined"),
    **dict.fromkeys(("add", "__add__", "__radd__", "add_", "__iadd__"), "added"),
}
KEEPING = {
    "narrow",
    "__getitem__",
    "pad",
    "contiguous",
    "dropout",
    "dropout2d",
    "dropout3d",
}  # give the same map or a part


@dataclass(frozen=True)
class Joint:
    """Where a skip enters the way up: an operand of an operation, counted in the order in which the network works."""

    kind: Kind
    call: int
    operand: int
    shape: tuple[int, ...]  # voxels


Visit = Callable[[Joint, torch.Tensor], torch.Tensor]  # what a skip is replaced with; itself, to change nothing


class SkipWatch(TorchFunctionMode):
    """While entered, shows `visit` every skip connection of the network that runs.

    A skip is a feature map that meets another one after the network has been at a coarser resolution since it was made.
    They meet in a concatenation, a product (attention gates) or a sum.
    """

    def __init__(self, dims: int, visit: Visit) -> None:
        super().__init__()
        self.dims, self.visit = dims, visit
        self.voxels: list[int] = []  # of every feature map so far
        self.made = WeakIdKeyDictionary()  # feature map to its place in `voxels`
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in MEETINGS:
            self.calls += 1
            is_list = isinstance(args[0], list | tuple)
            operands, others = (args[0], args[1:]) if is_list else (args[:2], args[2:])
            if sum(map(self._is_map, operands)) > 1:
                operands = [self._passed(MEETINGS[name], place, operand) for place, operand in enumerate(operands)]
                args = (operands, *others) if is_list else (*operands, *others)
        result = func(*args, **(kwargs or {}))
        if self._is_map(result):
            is_kept = name in KEEPING and args[0] in self.made
            self.made[result] = self.made[args[0]] if is_kept else len(self.voxels)
            self.voxels.append(prod(result.shape[2:]))
        return result

    def _is_map(self, value: object) -> bool:
        """(B, C, …) of more than one voxel: what is pooled to a single one is a weight of channels, not a resolution."""
        return isinstance(value, torch.Tensor) and value.ndim == self.dims + 2 and prod(value.shape[2:]) > 1

    def _passed(self, kind: Kind, place: int, operand: torch.Tensor) -> torch.Tensor:
        shape = tuple(operand.shape[2:])
        is_skip = operand in self.made and min(self.voxels[self.made[operand] :]) < prod(shape)
        return self.visit(Joint(kind, self.calls, place, shape), operand) if is_skip else operand


@torch.no_grad()
def watched(network: torch.nn.Module, image: torch.Tensor, form: Form, visit: Visit) -> torch.Tensor:
    """The network's output for (B, C, …) in evaluation mode, as `visit` lets it be; then back to the mode of before.

    The network must not be compiled, and the image lies where it does.
    """
    was_training = network.training
    network.eval()
    try:
        with form.autocast(image.device), SkipWatch(image.ndim - 2, visit):
            output: torch.Tensor = network(image.to(memory_format=form.layout))
    finally:
        network.train(was_training)
    return output.float()


def finest_first(found: Collection[Joint]) -> list[Joint]:
    """The skips among what was found: sums count in networks that join nothing, elsewhere they belong to some block."""
    joined = [joint for joint in found if joint.kind == "joined"] or found
    return sorted(joined, key=lambda joint: -prod(joint.shape))


def skip_rows(network: torch.nn.Module, image: torch.Tensor, form: Form) -> list[dict[str, object]]:
    """A row of skips.tsv per skip connection, finest first; none for a network in which none is found.

    Args:
        image: (B, C, …), a few patches.
    """
    activations: dict[Joint, dict[str, Any]] = {}

    def measure(joint: Joint, skip: torch.Tensor) -> torch.Tensor:
        activations[joint] = describe(skip)
        return skip

    logits = watched(network, image, form, measure)
    rows = []
    for index, joint in enumerate(finest_first(activations), start=1):
        without = watched(network, image, form, _zero(joint))
        activation = activations[joint]
        effect = float((without - logits).norm() / logits.norm().clamp_min(1e-12))
        rows.append(
            {
                "skip": f"{index}: {' x '.join(map(str, joint.shape))}",
                **activation,
                "effect": effect,
                "verdict": verdict(activation["channels"], activation["dead_channels"], effect),
            }
        )
    return rows


def describe(skip: torch.Tensor) -> dict[str, Any]:
    """Of (B, C, …): a channel that is the same in all samples and voxels is dead."""
    skip = skip.float()
    axes = (0, *range(2, skip.ndim))
    variation, size = skip.amax(axes) - skip.amin(axes), skip.abs()
    return {
        "channels": skip.shape[1],
        "dead_channels": int((variation <= CONSTANT * size.max()).sum()),
        "mean_abs": float(size.mean()),
    }


def verdict(channels: int, dead_channels: int, effect: float) -> str:
    if dead_channels == channels:
        return "dead"
    return "silent" if effect < records.SILENT else "alive"


def _zero(wanted: Joint) -> Visit:
    return lambda joint, skip: torch.zeros_like(skip) if joint == wanted else skip
