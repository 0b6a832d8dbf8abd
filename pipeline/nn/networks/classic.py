"""The U-Net of 2015 (Ronneberger et al., arXiv:1505.04597), in 2D and 3D, as it was and with padding and batch norm.

Unpadded convolutions put out less than they take in. A plan wants one size for both, so the patch is continued by
mirroring, the paper's overlap-tile strategy, until what comes out covers it.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil

import torch
from monai.networks.layers import Conv, Norm, Pool
from torch import nn

from pipeline.architectures import classic_margin
from pipeline.plan import Plan

SMALLEST_OUTPUT = 4  # voxels that come out at any depth when the fewest go in


class ClassicUNet(nn.Module):
    """(B, C, …) to logits (B, L, …), which lack a margin on every side unless padded: 572 x 572 gives 388 x 388."""

    def __init__(
        self, dims: int, inputs: int, outputs: int, features: Sequence[int], *, is_padded: bool, dropout: float
    ) -> None:
        super().__init__()
        self.down = nn.ModuleList(_two_convolutions(dims, *pair, is_padded) for pair in pairwise((inputs, *features)))
        self.pool = Pool["max", dims](2)
        self.dropout = nn.Dropout(dropout)  # where the paper has it: at the end of the contracting path
        upwards = list(pairwise(features))[::-1]
        self.rise = nn.ModuleList(Conv["convtrans", dims](coarse, fine, 2, stride=2) for fine, coarse in upwards)
        self.merge = nn.ModuleList(_two_convolutions(dims, 2 * fine, fine, is_padded) for fine, _ in upwards)
        self.head = Conv["conv", dims](features[0], outputs, 1)
        self.apply(_initialise)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        skips: list[torch.Tensor] = []
        for stage in self.down:
            image = stage(self.pool(image) if skips else image)
            skips.append(image)
        image = self.dropout(skips.pop())
        for rise, merge in zip(self.rise, self.merge, strict=True):
            image = rise(image)
            image = merge(torch.cat((centre(skips.pop(), image.shape[2:]), image), dim=1))
        logits: torch.Tensor = self.head(image)
        return logits


class OverlapTile(nn.Module):
    """An unpadded network whose logits cover its image."""

    def __init__(self, network: ClassicUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        shape, num_stages = image.shape[2:], len(self.network.down)
        for axis, edge in enumerate(shape, start=2):
            image = mirror(image, axis, *margins(edge, num_stages))
        return centre(self.network(image), shape)


def classic_unet(plan: Plan, width: int) -> nn.Module:
    features = [width * 2**stage for stage in range(len(plan.strides))]
    network = ClassicUNet(
        plan.dims, plan.num_inputs, plan.num_outputs, features, is_padded=plan.is_padded, dropout=plan.dropout
    )
    return network if plan.is_padded else OverlapTile(network)


def margins(edge: int, num_stages: int) -> tuple[int, int]:
    """Voxels to add before and after `edge` so that every pooling is even and `edge` or a few more come out."""
    step = 2 ** (num_stages - 1)
    surplus = SMALLEST_OUTPUT + step * max(0, ceil((edge - SMALLEST_OUTPUT) / step)) - edge
    before = classic_margin(num_stages) + surplus // 2
    return before, before + surplus % 2


def mirror(image: torch.Tensor, axis: int, before: int, after: int) -> torch.Tensor:
    """Continue the image as in a mirror at its border voxels, to and fro where the margin is wider than the image."""
    edge = image.shape[axis]
    period = max(2 * (edge - 1), 1)  # a single voxel is repeated
    place = torch.arange(-before, edge + after, device=image.device) % period
    return image.index_select(axis, torch.minimum(place, period - place))


def centre(image: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    for axis, edge in enumerate(shape, start=2):
        image = image.narrow(axis, (image.shape[axis] - edge) // 2, edge)
    return image


def _two_convolutions(dims: int, inputs: int, outputs: int, is_padded: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (inputs, outputs):
        layers.append(Conv["conv", dims](before, outputs, 3, padding=int(is_padded), bias=not is_padded))
        if is_padded:
            layers.append(Norm["batch", dims](outputs))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
