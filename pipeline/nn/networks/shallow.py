"""Convolutions of maps that are shallower than their kernel, computed in a precision in which the CPU gets them right.

In bf16, oneDNN (seen with torch 2.13) gives wrong or infinite gradients of the weights of such a convolution, for example of
3 x 3 x 3 over two voxels of depth, and corrupts memory with larger kernels. Such maps are small: fp32 costs nothing.
"""

import copy

import torch
from torch import nn


class ShallowConv3d(nn.Conv3d):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if image.device.type != "cpu" or image.shape[2] >= self.kernel_size[0]:
            return super().forward(image)
        with torch.autocast("cpu", enabled=False):
            return super().forward(image.float())


def secure(network: nn.Module) -> nn.Module:
    """The same network and weights; its 3D convolutions watch the depth of what they are given."""
    for module in network.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = ShallowConv3d  # MONAI and we build them in many places
    return network


def plain(network: nn.Module) -> nn.Module:
    """A copy with torch's own convolutions, to be exported in fp32: what traces a network leaves marks in it."""
    copied = copy.deepcopy(network)
    for module in copied.modules():
        if type(module) is ShallowConv3d:
            module.__class__ = nn.Conv3d  # type: ignore[assignment]  # the class that it was made of
    return copied
