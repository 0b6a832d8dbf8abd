"""Logits at several resolutions and a reference to one number. The loss itself is MONAI's."""

from collections.abc import Sequence

import torch
from monai.losses import DiceCELoss
from torch.nn import functional


def deep_supervision_loss(
    logits: Sequence[torch.Tensor], reference: torch.Tensor, *, is_batch_dice: bool
) -> torch.Tensor:
    """Dice without background plus cross-entropy, each coarser level at half the weight of the one before.

    Args:
        logits: finest first, each (B, L, …).
        reference: (B, 1, …) class indices at the finest resolution; reduced by nearest neighbour for the others.
        is_batch_dice: one Dice over the whole batch, for small patches that miss labels (2D).
    """
    measure = DiceCELoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=is_batch_dice, smooth_nr=1e-5, smooth_dr=1e-5
    )
    weights = [0.5**level for level in range(len(logits))]
    total = torch.zeros((), device=reference.device)
    for weight, level in zip(weights, logits, strict=True):
        reduced = functional.interpolate(reference.float(), size=level.shape[2:], mode="nearest-exact")
        total = total + weight / sum(weights) * measure(level.float(), reduced)
    return total
