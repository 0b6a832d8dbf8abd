"""Mistakes in the mask that a cascade refines, so that its network looks at the scan and does not copy the mask.

nnU-Net's two, in forms that a batch can do. Morphology: nnU-Net dilates, erodes, opens or closes each label by a ball of
up to 8 voxels; here all labels of a patch change together, each grows or shrinks, by a cube of as many voxels, and in
half of the patches back again, which closes or opens. Loss: nnU-Net takes a connected component of each label away; here
a label is gone from the whole patch, for finding components would wait for the CPU.
Source: nnU-Net v2 (`ApplyRandomBinaryOperatorTransform`, `RemoveRandomConnectedComponentFromOneHotEncodingTransform`).
"""

import torch
from torch.nn import functional

from pipeline.nn.augment.axes import in_plane
from pipeline.nn.augment.draws import beside, drawn, drawn_samples

MORPHOLOGY_PROBABILITY = 0.4
LARGEST_RADIUS = 6  # voxels; a cube of 13 has as many as a ball of radius 8
LOSS_PROBABILITY = 0.2
LABEL_LOSS_PROBABILITY = 0.5  # of each label, in a patch that loses any


def make_mistakes(mask: torch.Tensor, num_classes: int) -> None:
    """Overwrite some samples of (B, 1, …) class indices below `num_classes`, of which 0 is the background.

    A flat patch changes within its slices.
    """
    planes = in_plane(mask)
    for sample in drawn_samples(len(mask), MORPHOLOGY_PROBABILITY).tolist():
        ranks = (torch.randperm(num_classes - 1) + 1) * (2 * torch.randint(2, (num_classes - 1,)) - 1)
        ranks = torch.cat([ranks.new_zeros(1), ranks])
        radius, is_undone = int(torch.randint(1, LARGEST_RADIUS + 1, ())), bool(drawn(1, 0.5))
        planes[sample] = grow_and_shrink(planes[sample], ranks, radius, is_undone=is_undone)
    for sample in drawn_samples(len(mask), LOSS_PROBABILITY).tolist():
        is_kept = ~drawn(num_classes, LABEL_LOSS_PROBABILITY)
        planes[sample] = looked_up(planes[sample], torch.arange(num_classes) * is_kept)


def grow_and_shrink(classes: torch.Tensor, ranks: torch.Tensor, radius: int, *, is_undone: bool) -> torch.Tensor:
    """(C, …) class indices in which, around every voxel, the class of the highest rank has won within `radius` voxels.

    Classes ranked above the background grow, into those ranked below them too; those below it shrink. If it is undone,
    the lowest rank wins next: what grew is closed, what shrank is opened.

    Args:
        ranks: (classes,) different integers between -classes and classes.
    """
    by_rank = torch.zeros(2 * len(ranks), dtype=torch.int64)
    by_rank[ranks + len(ranks)] = torch.arange(len(ranks))
    values = looked_up(classes, ranks).float()
    values = _highest_around(values, radius)
    if is_undone:
        values = -_highest_around(-values, radius)
    return looked_up(values.long() + len(ranks), by_rank).to(classes.dtype)


def looked_up(classes: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """What the table (classes,) has for each class, as the type of the classes."""
    found = beside(table, classes).index_select(0, classes.flatten().long())
    return found.view(classes.shape).to(classes.dtype)


def _highest_around(values: torch.Tensor, radius: int) -> torch.Tensor:
    """The maximum over a cube around each voxel of (C, …), axis by axis; what lies outside does not count."""
    pool = functional.max_pool3d if values.ndim == 4 else functional.max_pool2d
    for axis in range(values.ndim - 1):
        along = [int(axis == other) for other in range(values.ndim - 1)]
        kernel, padding = [1 + 2 * radius * here for here in along], [radius * here for here in along]
        values = pool(values[None], kernel, stride=1, padding=padding)[0]
    return values
