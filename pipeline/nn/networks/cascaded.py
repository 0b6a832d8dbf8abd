"""A network of a cascade: it reads the mask before it, one class index per voxel, as a map of each label or region.

The mask travels as one channel, so that disk, memory and patches hold one whatever the number of labels.
"""

import torch
from torch import nn

from pipeline.nn.outputs import class_table
from pipeline.plan import Plan


class Cascaded(nn.Module):
    """(B, C + 1, …) with class indices last to what the network makes of (B, C + K, …)."""

    maps: torch.Tensor

    def __init__(self, network: nn.Module, plan: Plan) -> None:
        super().__init__()
        self.network = network
        table = class_table(plan.labels, plan.regions)[:, int(plan.has_background) :]
        self.register_buffer("maps", table.float(), persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        maps = self.maps[image[:, -1].long()].movedim(-1, 1)
        outputs: torch.Tensor | list[torch.Tensor] = self.network(torch.cat((image[:, :-1], maps.to(image)), dim=1))
        return outputs
