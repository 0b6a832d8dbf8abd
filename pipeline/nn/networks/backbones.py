"""A U-Net around the encoder of a classification network: MONAI's `FlexibleUNet`, with the encoders that it lacks.

MONAI has ResNet (He et al. 2016) and EfficientNet (Tan and Le 2019); ResNeXt (Xie et al. 2017), its form with
squeeze-and-excitation (Hu et al. 2018) and DenseNet (Huang et al. 2017) are registered here. All in 2D and 3D.
"""

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets import FLEXUNET_BACKBONE, DenseNet, FlexibleUNet, SENet
from torch import nn

from pipeline.plan import Plan

RESNEXT_BLOCKS = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3)}
DENSENET_LAYERS = {"121": (6, 12, 24, 16), "169": (6, 12, 32, 32), "201": (6, 12, 48, 32), "264": (6, 12, 64, 48)}
DENSENET_GROWTH = 32  # features that each layer adds


class ResNeXtEncoder(SENet):
    """(B, C, …) to a map of each resolution, from half the image's size down; `is_gated`: squeeze-and-excitation."""

    def __init__(
        self, num_blocks: Sequence[int], is_gated: bool, spatial_dims: int, in_channels: int, pretrained: bool
    ) -> None:
        assert not pretrained
        super().__init__(
            spatial_dims,
            in_channels,
            block="se_resnetxt_bottleneck",
            layers=num_blocks,
            groups=32,
            reduction=16,
            dropout_prob=None,
            inplanes=64,
            downsample_kernel_size=1,
            input_3x3=False,
        )
        del self.last_linear  # would never get a gradient
        if not is_gated:
            for block in (*self.layer1, *self.layer2, *self.layer3, *self.layer4):
                block.se_layer = nn.Identity()

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        maps = [self.layer0[:-1](image)]
        maps.append(self.layer1(self.layer0[-1](maps[-1])))
        for layer in (self.layer2, self.layer3, self.layer4):
            maps.append(layer(maps[-1]))
        return maps


class DenseNetEncoder(DenseNet):
    """(B, C, …) to a map of each resolution, from half the image's size down."""

    def __init__(self, num_layers: Sequence[int], spatial_dims: int, in_channels: int, pretrained: bool) -> None:
        assert not pretrained
        super().__init__(
            spatial_dims, in_channels, out_channels=1, growth_rate=DENSENET_GROWTH, block_config=num_layers
        )
        del self.class_layers  # would never get a gradient

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        maps: list[torch.Tensor] = []
        for name, layer in self.features.named_children():
            image = layer(image)
            if name in ("relu0", "denseblock1", "denseblock2", "denseblock3", "norm5"):
                maps.append(image)
        return maps


def backbone_unet(plan: Plan, width: int) -> nn.Module:
    """The encoder's width is its own: `width` changes nothing."""
    network = FlexibleUNet(
        spatial_dims=plan.dims,
        in_channels=plan.num_inputs,
        out_channels=plan.num_outputs,
        backbone=plan.encoder,
        dropout=plan.dropout,
    )
    if plan.encoder.startswith("efficientnet"):  # drop the classifier, which would never get a gradient
        del network.encoder._conv_head, network.encoder._bn1, network.encoder._fc
    return network


def _densenet_features(num_layers: Sequence[int]) -> tuple[int, ...]:
    """Of each map: a block adds to what comes in, and a transition halves it."""
    features = [64]
    for layers in num_layers:
        incoming = 64 if len(features) == 1 else features[-1] // 2
        features.append(incoming + layers * DENSENET_GROWTH)
    return tuple(features)


def _register(name: str, encoder: type[nn.Module], features: Sequence[int], **parameters: Any) -> None:
    FLEXUNET_BACKBONE.register_dict[name] = {
        "type": encoder,
        "feature_number": len(features),
        "feature_channel": tuple(features),
        "parameter": {**parameters, "spatial_dims": 3, "in_channels": 1, "pretrained": False},
    }


for depth, blocks in RESNEXT_BLOCKS.items():
    for prefix, is_gated in {"resnext": False, "se_resnext": True}.items():
        features = (64, 256, 512, 1024, 2048)
        _register(f"{prefix}{depth}", ResNeXtEncoder, features, num_blocks=blocks, is_gated=is_gated)
for depth, layers in DENSENET_LAYERS.items():
    _register(f"densenet{depth}", DenseNetEncoder, _densenet_features(layers), num_layers=layers)
