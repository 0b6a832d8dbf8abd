"""The axes of a patch: which of them turn together, and linear changes along one of them.

Blurring, coarsening, splines and k-space all work axis by axis, as one matrix per sample and axis. The product with a
banded matrix costs less than a grouped convolution with a kernel per sample, and the same for any kernel.
"""

import torch

FLAT = 3  # longest edge / first edge of a 3D patch above which its slices are changed, not its volume


def is_flat(shape: tuple[int, ...]) -> bool:
    """A 3D patch of few, distant slices, which are changed alike instead of the volume."""
    return len(shape) == 3 and max(shape) > FLAT * shape[0]


def in_plane(batch: torch.Tensor) -> torch.Tensor:
    """(B, C, …), or of a flat patch its slices as channels: a view (B, C·D, H, W) in the same memory."""
    return batch.view(len(batch), -1, *batch.shape[3:]) if is_flat(batch.shape[2:]) else batch


def along_axis(values: torch.Tensor, matrices: torch.Tensor, axis: int) -> torch.Tensor:
    """(N, …, J, …) with J along `axis`, counted after N, to (N, …, I, …) by matrices (N, I, J)."""
    shape = (*values.shape[: axis + 1], matrices.shape[1], *values.shape[axis + 2 :])
    if axis == values.ndim - 2:
        return (values.flatten(1, -2) @ matrices.mT).view(shape)
    before, after = values.shape[1 : axis + 1].numel(), values.shape[axis + 2 :].numel()
    return (matrices[:, None] @ values.reshape(len(values), before, -1, after)).view(shape)
