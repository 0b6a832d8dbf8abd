"""What chance decides, drawn on the CPU from torch's global random state: who is changed, and by how much."""

from collections.abc import Callable, Iterator

import torch

CACHED_VOXELS = 100_000  # changed at once on a CPU, so that a chain of changes stays in its cache


def drawn(count: int, probability: float) -> torch.Tensor:
    """(count,) bool."""
    return torch.rand(count) < probability


def drawn_samples(count: int, probability: float) -> torch.Tensor:
    """Indices into a batch."""
    return drawn(count, probability).nonzero()[:, 0]


def drawn_channels(batch: int, channels: int, probability: float, channel_probability: float) -> torch.Tensor:
    """Indices into (batch x channels): channels are drawn within drawn samples."""
    samples = drawn(batch, probability)[:, None]
    return (samples & (torch.rand(batch, channels) < channel_probability)).flatten().nonzero()[:, 0]


def uniform(shape: tuple[int, ...], low: float, high: float) -> torch.Tensor:
    return torch.rand(shape) * (high - low) + low


def around_one(count: int, low: float, high: float) -> torch.Tensor:
    """(count,) factors, as often below one as above, evenly on either side. Source: batchgeneratorsv2."""
    return torch.where(drawn(count, 0.5), uniform((count,), low, 1), uniform((count,), 1, high))


def overwrite(
    batch: torch.Tensor, chosen: torch.Tensor, change: Callable[..., torch.Tensor], *parameters: torch.Tensor
) -> None:
    """The chosen items (N,) of a batch by `change(items, *parameters)`; nothing where none is chosen."""
    for part in turns(batch, len(chosen)):
        index = beside(chosen[part], batch)
        batch[index] = change(batch.index_select(0, index), *(values[part] for values in parameters))


def turns(batch: torch.Tensor, count: int) -> Iterator[slice]:
    """Which of `count` chosen items to change together: all on a GPU, few on a CPU."""
    size = max(1, CACHED_VOXELS // batch[0].numel()) if batch.device.type == "cpu" else count
    return (slice(start, start + size) for start in range(0, count, size or 1))


def beside(values: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    """What was drawn on the device of the batch, for which nobody waits."""
    return values.to(batch.device, non_blocking=True)


def per_item(values: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """(N,) beside items (N, …), with as many axes, to calculate with them."""
    return beside(values, items).view(-1, *(1,) * (items.ndim - 1))
