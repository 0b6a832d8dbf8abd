"""Networks whose implementation is MONAI's: here is only what a plan means for each of them."""

from math import gcd

import torch
from monai.networks.blocks import UnetOutBlock
from monai.networks.nets import UNETR, AttentionUnet, BasicUNetPlusPlus, DynUNet, SegResNet, SwinUNETR
from torch import nn

from pipeline.plan import Plan

FEATURES_PER_HEAD = 12  # a multiple of it is what SwinUNETR takes, for its first stages
TRANSFORMER_FEATURES = 24  # of UNETR, for each of the width: 768 at 32, as in the paper


class DeeplySupervisedUNet(DynUNet):
    """MONAI's `DynUNet`, whose training output is a list of logits, finest first, each at its own resolution.

    MONAI stacks them at full size; the loss on a reduced reference is as good and costs a fraction. Nor does MONAI's
    dropout spare the logits themselves.
    """

    def forward(self, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        try:
            logits = self.output_block(self.skip_layers(image))
            return [logits, *self.heads] if self.training else logits
        finally:  # MONAI would keep them, and with them the graph of a step that ran out of memory
            self.heads[:] = [None] * len(self.heads)

    def get_output_block(self, idx: int) -> nn.Module:
        return UnetOutBlock(self.spatial_dims, self.filters[idx], self.out_channels)


class DeeplySupervisedUNetPlusPlus(BasicUNetPlusPlus):
    """MONAI's `BasicUNetPlusPlus`; the deepest of its U-Nets comes first, and alone when it predicts."""

    def forward(self, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        logits = super().forward(image)[::-1]
        return logits if self.training else logits[0]


def unet(plan: Plan, width: int) -> nn.Module:
    strides = plan.strides
    return DeeplySupervisedUNet(
        spatial_dims=plan.dims,
        in_channels=plan.num_inputs,
        out_channels=plan.num_outputs,
        kernel_size=plan.kernels,
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=plan.features(width),
        dropout=plan.dropout or None,
        norm_name=("INSTANCE", {"affine": True}),
        act_name=("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
        deep_supervision=True,
        deep_supr_num=len(strides) - 2,
    )


def attention_unet(plan: Plan, width: int) -> nn.Module:
    return AttentionUnet(
        spatial_dims=plan.dims,
        in_channels=plan.num_inputs,
        out_channels=plan.num_outputs,
        channels=plan.features(width),
        strides=plan.strides[1:],
        dropout=plan.dropout,
    )


def unet_plus_plus(plan: Plan, width: int) -> nn.Module:
    return DeeplySupervisedUNetPlusPlus(
        spatial_dims=plan.dims,
        in_channels=plan.num_inputs,
        out_channels=plan.num_outputs,
        features=(width, 2 * width, 4 * width, 8 * width, 16 * width, width),
        deep_supervision=True,
        dropout=plan.dropout,
    )


def segresnet(plan: Plan, width: int) -> nn.Module:
    return SegResNet(
        spatial_dims=plan.dims,
        in_channels=plan.num_inputs,
        out_channels=plan.num_outputs,
        init_filters=width,
        dropout_prob=plan.dropout or None,
        norm=("GROUP", {"num_groups": gcd(8, width)}),
    )


def swin_unetr(plan: Plan, width: int) -> nn.Module:
    return SwinUNETR(
        spatial_dims=plan.dims,
        in_channels=plan.num_inputs,
        out_channels=plan.num_outputs,
        feature_size=FEATURES_PER_HEAD * max(1, round(width / 8)),  # 48 at 32, as in the paper
        drop_rate=plan.dropout,
    )


def unetr(plan: Plan, width: int) -> nn.Module:
    network = UNETR(
        spatial_dims=plan.dims,
        in_channels=plan.num_inputs,
        out_channels=plan.num_outputs,
        img_size=plan.patch_size,
        feature_size=width // 2,
        hidden_size=TRANSFORMER_FEATURES * width,
        mlp_dim=4 * TRANSFORMER_FEATURES * width,
        dropout_rate=plan.dropout,
    )
    for block in network.vit.blocks:
        del block.norm_cross_attn  # of an attention that it does not have; it would never get a gradient
    return network
