"""A plan to an untrained network. The implementations are MONAI's."""

import torch
from monai.networks.nets import DynUNet
from torch import nn

from pipeline.plan import Plan


class DeeplySupervisedUNet(DynUNet):
    """MONAI's `DynUNet`, whose training output is a list of logits, finest first, each at its own resolution.

    MONAI stacks them at full size; the loss on a reduced reference is as good and costs a fraction.
    """

    def forward(self, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        logits = self.output_block(self.skip_layers(image))
        return [logits, *self.heads] if self.training else logits


def build_network(plan: Plan, width: int) -> nn.Module:
    """(B, C, …) of `plan.patch_size` or any multiple of its strides to logits (B, L, …)."""
    strides = plan.strides
    return DeeplySupervisedUNet(
        spatial_dims=plan.dims,
        in_channels=len(plan.channels),
        out_channels=plan.num_outputs,
        kernel_size=plan.kernels,
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=plan.features(width),
        norm_name=("INSTANCE", {"affine": True}),
        act_name=("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
        deep_supervision=True,
        deep_supr_num=len(strides) - 2,
    )
