"""Losses by name: what a network puts out at several resolutions and a reference to one number.

A loss is an overlap of masks, a mean over voxels, or the sum of one of each; MONAI's wherever it has it. Voxels of the
ignore label, whose class index is the one after the last label's, count for nothing in either.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from monai.losses import DiceLoss, FocalLoss, GeneralizedDiceLoss, TverskyLoss
from torch import Tensor
from torch.nn import functional

from pipeline.errors import ConfigError
from pipeline.nn.outputs import activate, is_counted, masks_of
from pipeline.plan import Plan

Loss = Callable[[Sequence[Tensor] | Tensor, Tensor], Tensor]
Measure = Callable[[Tensor, Tensor], Tensor]  # logits (B, L, …) and reference (B, 1, …) of one resolution to a number

SUMS = {"dice_ce": ("dice", "ce"), "dice_bce": ("dice", "bce"), "dice_focal": ("dice", "focal")}
OVERLAPS = {
    "dice": DiceLoss,
    # Salehi et al. 2017, doi:10.1007/978-3-319-67389-9_44: a missed voxel costs more than an invented one
    "tversky": partial(TverskyLoss, alpha=0.3, beta=0.7),
    "generalized_dice": GeneralizedDiceLoss,
}
FOCAL_GAMMA = 2.0  # Lin et al. 2017, doi:10.1109/ICCV.2017.324
HARDEST = 0.1  # share of the voxels that topk_ce looks at, as in nnU-Net
SMALLEST_SUM = 1e-8  # of weights, so that nothing at all has loss 0
REGRESSIONS: dict[str, Measure] = {"mse": functional.mse_loss, "mae": functional.l1_loss}


def make_loss(train: Mapping[str, Any], plan: Plan) -> Loss:
    """The loss that `train` (the section of the configuration: `loss`, `class_weights`) names, for the plan's outputs.

    It takes the network's output, linear, a tensor or several from the finest resolution down, and the reference
    (B, 1, …) at the finest: class indices, or values in a regression. The reference is reduced by nearest neighbour for
    the others, each of which has half the weight of the one before.

    Raises:
        ConfigError: not one class weight for each output.
    """
    measure = _regression(train["loss"]) if plan.task == "regression" else _segmentation(train, plan)

    def loss(outputs: Sequence[Tensor] | Tensor, reference: Tensor) -> Tensor:
        levels = [outputs] if isinstance(outputs, Tensor) else outputs
        weights = [0.5**level for level in range(len(levels))]
        values = [measure(level.float(), reduce(reference, level.shape[2:])) for level in levels]
        return torch.stack([weight * value for weight, value in zip(weights, values, strict=True)]).sum() / sum(weights)

    return loss


def reduce(reference: Tensor, shape: Sequence[int]) -> Tensor:
    if reference.shape[2:] == shape:
        return reference
    return functional.interpolate(reference.float(), size=shape, mode="nearest-exact").to(reference.dtype)


def _regression(name: str) -> Measure:
    function = REGRESSIONS[name]
    return lambda outputs, reference: function(outputs, reference.float())


def _segmentation(train: Mapping[str, Any], plan: Plan) -> Measure:
    weights = class_weights(train["class_weights"], plan)
    names = SUMS.get(train["loss"], (train["loss"],))
    parts = [(_overlap if name in OVERLAPS else _voxelwise)(name, weights, plan) for name in names]
    return lambda logits, reference: torch.stack([part(logits, reference) for part in parts]).sum()


def class_weights(wanted: Sequence[float], plan: Plan) -> Tensor | None:
    """(L,) one for each output, of which only the ratios matter; None if all outputs count the same.

    Raises:
        ConfigError: another number of weights.
    """
    if not wanted:
        return None
    if len(wanted) != plan.num_outputs:
        outputs = "the regions" if plan.regions else f"the labels {', '.join(map(str, plan.labels))}"
        raise ConfigError(
            f"config: train.class_weights has {len(wanted)} numbers, {plan.num_outputs} expected: one for each of "
            f"{outputs}, in this order. Correct them, or remove the line if all count the same."
        )
    return torch.tensor(wanted, dtype=torch.float32)


def _overlap(name: str, weights: Tensor | None, plan: Plan) -> Measure:
    """The weighted mean over outputs, then over samples, or over the batch as one where patches see little.

    Without the background, which would outweigh the rest; `generalized_dice` has weights against that and keeps it.
    """
    first = 1 if plan.has_background and name != "generalized_dice" else 0
    one_minus_overlap = OVERLAPS[name](batch=plan.is_batch_dice, reduction="none")
    weights_on = None if weights is None else _copied_once(weights[first:])

    def measure(logits: Tensor, reference: Tensor) -> Tensor:
        probabilities, masks = activate(logits, plan)[:, first:], masks_of(reference, plan)[:, first:]
        if plan.ignore_label is not None:
            probabilities = probabilities * is_counted(reference, plan)
        values = one_minus_overlap(probabilities, masks.to(probabilities.dtype))
        if weights_on is None:
            return torch.mean(values)
        return _weighted_mean(values.reshape(-1, plan.num_outputs - first), weights_on(values.device))

    return measure


def _voxelwise(name: str, weights: Tensor | None, plan: Plan) -> Measure:
    """The weighted mean over voxels, each of which counts by its label, or in each region by the region's weight."""
    by_voxel = VOXELWISE[name]
    is_weighted = weights is not None or plan.ignore_label is not None
    weights_on = _copied_once(torch.ones(plan.num_outputs) if weights is None else weights)

    def measure(logits: Tensor, reference: Tensor) -> Tensor:
        values = by_voxel(logits, reference, plan)
        counts = _voxel_weights(reference, weights_on(logits.device), plan).expand_as(values) if is_weighted else None
        if name == "topk_ce":
            values, counts = _hardest(values, counts)
        return values.mean() if counts is None else _weighted_mean(values, counts)

    return measure


def _copied_once(weights: Tensor) -> Callable[[torch.device], Tensor]:
    """The weights on a device, where a copy in every step would make a GPU wait."""
    return lru_cache(lambda device: weights.to(device))


def _cross_entropy(logits: Tensor, reference: Tensor, plan: Plan) -> Tensor:
    ignored = len(plan.labels)
    return functional.cross_entropy(logits, reference[:, 0].long(), ignore_index=ignored, reduction="none")[:, None]


def _binary_cross_entropy(logits: Tensor, reference: Tensor, plan: Plan) -> Tensor:
    masks = masks_of(reference, plan).to(logits.dtype)
    return functional.binary_cross_entropy_with_logits(logits, masks, reduction="none")


def _focal(logits: Tensor, reference: Tensor, plan: Plan) -> Tensor:
    focal = FocalLoss(use_softmax=not plan.regions, gamma=FOCAL_GAMMA, reduction="none")
    values: Tensor = focal(logits, masks_of(reference, plan).to(logits.dtype))
    return values


VOXELWISE: dict[str, Callable[[Tensor, Tensor, Plan], Tensor]] = {
    "ce": _cross_entropy,
    "topk_ce": _cross_entropy,
    "bce": _binary_cross_entropy,
    "focal": _focal,
}


def _voxel_weights(reference: Tensor, by_output: Tensor, plan: Plan) -> Tensor:
    """(B, 1, …), or (B, L, …) for regions; 0 at voxels of the ignore label."""
    if plan.regions:
        return is_counted(reference, plan) * by_output.view(-1, *(1,) * (reference.ndim - 2))
    return torch.cat([by_output, by_output.new_zeros(1)])[reference.long()]


def _hardest(values: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The tenth of the voxels that count, by weighted value; one at least."""
    num_counted = values.numel() if counts is None else int((counts > 0).sum())
    weighted = values if counts is None else values * counts
    hardest = weighted.flatten().topk(max(1, int(HARDEST * num_counted))).indices
    return values.flatten()[hardest], None if counts is None else counts.flatten()[hardest]


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """0 when all weights are 0."""
    weights = weights.expand_as(values)
    return (values * weights).sum() / weights.sum().clamp_min(SMALLEST_SUM)
