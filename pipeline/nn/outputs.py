"""What the maps that a network puts out stand for: labels of which a voxel has one, regions that may overlap, or values.

Class indices are places in the plan's labels; the index of the ignore label is the one after the last. Knows no loss.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.plan import Plan

Counts = NDArray[np.int64]  # (L,) voxels of each output


def is_counted(reference: Tensor, plan: Plan) -> Tensor:
    """(B, 1, …) class indices to bool: False at voxels of the ignore label."""
    return reference != len(plan.labels)


def masks_of(reference: Tensor, plan: Plan) -> Tensor:
    """(B, 1, …) class indices to (B, L, …) bool: one mask for each output. Voxels of the ignore label are in none."""
    if plan.regions:
        table = _table_on(reference.device, plan.labels, plan.regions)
        return table[reference[:, 0].long()].movedim(-1, 1)
    indices = torch.arange(len(plan.labels), dtype=reference.dtype, device=reference.device)
    return reference == indices.view(-1, *(1,) * (reference.ndim - 2))


def class_table(labels: tuple[int, ...], regions: tuple[tuple[int, ...], ...]) -> Tensor:
    """(labels + 1, L) bool: which outputs each class index belongs to; the ignore label's belongs to none."""
    groups = regions or [(label,) for label in labels]
    return torch.tensor([[value in group for group in groups] for value in (*labels, None)])


@lru_cache(maxsize=8)
def _table_on(device: torch.device, labels: tuple[int, ...], regions: tuple[tuple[int, ...], ...]) -> Tensor:
    """Copied once, for a GPU is waited for while it gets a small tensor."""
    return class_table(labels, regions).to(device)


def activate(outputs: Tensor, plan: Plan) -> Tensor:
    """(B, L, …) as the network puts it out to what it means: probabilities, or values in a regression."""
    if plan.task == "regression":
        return outputs
    return torch.sigmoid(outputs) if plan.regions else torch.softmax(outputs, dim=1)


def found_masks(outputs: Tensor, plan: Plan) -> Tensor:
    """(B, L, …) before activation to (B, L, …) bool: the likeliest label, or every region of a probability above 0.5."""
    return masks_of(outputs.argmax(dim=1, keepdim=True), plan) if plan.has_background else outputs > 0


def count_voxels(outputs: Tensor, reference: Tensor, plan: Plan) -> tuple[Counts, Counts, Counts]:
    """Of each output the voxels that are found and right, that are found, and that are in the reference.

    Voxels of the ignore label are left out.

    Args:
        outputs: (B, L, …) before activation.
        reference: (B, 1, …) class indices.
    """
    wanted = masks_of(reference, plan)
    found = found_masks(outputs, plan) & is_counted(reference, plan)
    axes = (0, *range(2, outputs.ndim))
    right, all_found, all_wanted = ((mask.sum(axes)).cpu().numpy() for mask in (found & wanted, found, wanted))
    return right, all_found, all_wanted
