"""Encoders and decoders that follow the strides and kernels of the plan: nnU-Net's residual encoder, and one without skips.

Source: Isensee et al. 2024, arXiv:2404.09556. Convolution, instance norm and leaky ReLU, all initialised as He et al. 2015.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from monai.networks.layers import Conv, Norm, Pool
from torch import nn

from pipeline.plan import Plan
from pipeline.topology import RESIDUAL_BLOCKS

NEGATIVE_SLOPE = 0.01


class EncoderDecoder(nn.Module):
    """Stages from fine to coarse and back; logits come from every stage of the way back, finest first."""

    def __init__(
        self, plan: Plan, width: int, stages: Sequence[nn.Module], *, has_skips: bool, num_merging: int
    ) -> None:
        super().__init__()
        dims, features = plan.dims, plan.features(width)
        self.has_skips = has_skips
        self.stages = nn.ModuleList(stages)
        self.rise, self.merge, self.heads = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, (fine, coarse) in enumerate(pairwise(features)):
            stride, kernel = plan.strides[level + 1], plan.kernels[level + 1]
            self.rise.append(Conv["convtrans", dims](coarse, fine, kernel_size=stride, stride=stride))
            joined = [2 * fine if has_skips else fine, *[fine] * num_merging]
            self.merge.append(
                nn.Sequential(*(_block(dims, *pair, kernel, 1, plan.dropout) for pair in pairwise(joined)))
            )
            self.heads.append(Conv["conv", dims](fine, plan.num_outputs, kernel_size=1))
        self.apply(_initialise)

    def forward(self, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        skips: list[torch.Tensor] = []
        for stage in self.stages:
            image = stage(image)
            skips.append(image)
        logits: list[torch.Tensor] = []
        for level in reversed(range(len(self.rise))):
            image = self.rise[level](image)
            image = self.merge[level](torch.cat((image, skips[level]), dim=1) if self.has_skips else image)
            if self.training or level == 0:
                logits.insert(0, self.heads[level](image))
        return logits if self.training else logits[0]


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, which averages where they stride; starts as the shortcut alone."""

    def __init__(
        self, dims: int, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        last = _normed(dims, outputs, outputs, kernel, 1, dropout)
        nn.init.zeros_(last.get_parameter("2.weight"))  # of its norm
        self.convolutions = nn.Sequential(_block(dims, inputs, outputs, kernel, stride, dropout), last)
        self.shortcut = nn.Sequential()
        if max(stride) > 1:
            self.shortcut.append(Pool["avg", dims](stride, stride))
        if inputs != outputs:
            self.shortcut.append(_normed(dims, inputs, outputs, (1,) * dims, 1, dropout=0))
        self.activation = nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.activation(self.convolutions(image) + self.shortcut(image))
        return result


def residual_unet(plan: Plan, width: int) -> nn.Module:
    dims, features = plan.dims, plan.features(width)
    stem = _block(dims, plan.num_inputs, features[0], plan.kernels[0], 1, plan.dropout)
    stages: list[nn.Module] = []
    for level, (inputs, outputs) in enumerate(pairwise((features[0], *features))):
        kernel, num_blocks = plan.kernels[level], RESIDUAL_BLOCKS[min(level, len(RESIDUAL_BLOCKS) - 1)]
        first = ResidualBlock(dims, inputs, outputs, kernel, plan.strides[level], plan.dropout)
        further = (
            ResidualBlock(dims, outputs, outputs, kernel, (1,) * dims, plan.dropout) for _ in range(1, num_blocks)
        )
        stages.append(nn.Sequential(first, *further))
    stages[0] = nn.Sequential(stem, stages[0])
    return EncoderDecoder(plan, width, stages, has_skips=True, num_merging=1)


def fcn(plan: Plan, width: int) -> nn.Module:
    """The plan's plain U-Net in all but the skips, so that a comparison shows what they are worth."""
    sizes = pairwise((plan.num_inputs, *plan.features(width)))
    stages = [
        nn.Sequential(
            _block(plan.dims, inputs, outputs, kernel, stride, plan.dropout),
            _block(plan.dims, outputs, outputs, kernel, 1, plan.dropout),
        )
        for (inputs, outputs), kernel, stride in zip(sizes, plan.kernels, plan.strides, strict=True)
    ]
    return EncoderDecoder(plan, width, stages, has_skips=False, num_merging=2)


def _block(
    dims: int, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int] | int, dropout: float
) -> nn.Module:
    normed = _normed(dims, inputs, outputs, kernel, stride, dropout)
    return nn.Sequential(*normed, nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True))


def _normed(
    dims: int, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int] | int, dropout: float
) -> nn.Sequential:
    """No bias: the norm would take it away again."""
    padding = tuple(edge // 2 for edge in kernel)
    convolution = Conv["conv", dims](inputs, outputs, tuple(kernel), stride=stride, padding=padding, bias=False)
    return nn.Sequential(convolution, nn.Dropout(dropout), Norm["instance", dims](outputs, affine=True))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
