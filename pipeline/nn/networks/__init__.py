"""A plan to an untrained network, by the names of `pipeline.architectures`."""

from collections.abc import Callable

from torch import nn

from pipeline.nn.networks.backbones import backbone_unet
from pipeline.nn.networks.cascaded import Cascaded
from pipeline.nn.networks.classic import classic_unet
from pipeline.nn.networks.encoder_decoder import fcn, residual_unet
from pipeline.nn.networks.from_monai import attention_unet, segresnet, swin_unetr, unet, unet_plus_plus, unetr
from pipeline.nn.networks.shallow import secure
from pipeline.plan import Plan

BUILDERS: dict[str, Callable[[Plan, int], nn.Module]] = {
    builder.__name__: builder
    for builder in (
        unet,
        residual_unet,
        classic_unet,
        attention_unet,
        unet_plus_plus,
        segresnet,
        swin_unetr,
        unetr,
        backbone_unet,
        fcn,
    )
}


def build_network(plan: Plan, width: int) -> nn.Module:
    """(B, C, …) of `plan.patch_size`, as `prepare` makes it, to logits (B, L, …) of the same size.

    In training, a network with deep supervision gives a list of logits, finest first, each at its own resolution.
    """
    network = secure(BUILDERS[plan.network](plan, width))
    return Cascaded(network, plan) if plan.previous else network
