"""Random changes of a whole batch at once, on the device where it lies, with torch's global random state.

nnU-Net's changes with its probabilities, in its order: one resampling for all that is spatial (`spatial`), the artefacts
of MR if asked for (`artefacts`), intensities (`intensity`), mirroring, and in a cascade mistakes in the mask before it
(`mistakes`). What happens to which sample, and how much, is drawn on the CPU, so that a GPU is never waited for; only
noise is drawn where the batch lies. Knows patches, not where they come from. The functions of explicit parameters agree
with MONAI's (`tests/test_augment.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.mirrors import Mirror
from pipeline.nn.augment.artefacts import ARTEFACTS
from pipeline.nn.augment.intensity import change_intensity
from pipeline.nn.augment.mistakes import make_mistakes
from pipeline.nn.augment.spatial import deform, mirror


@dataclass(frozen=True)
class Options:
    """What is drawn beside nnU-Net's changes. `mask_classes`: of the mask in a cascade's last channel, 0 without one."""

    elastic: bool
    artefacts: tuple[str, ...]
    mask_classes: int = 0


def read_options(train: Mapping[str, Any], mask_classes: int = 0) -> Options:
    """`train` is the section of the configuration."""
    return Options(elastic=train["elastic"], artefacts=tuple(train["artefacts"]), mask_classes=mask_classes)


def augment(
    image: torch.Tensor, reference: torch.Tensor, options: Options, mirrors: Sequence[Mirror]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A changed copy of a batch; every sample draws for itself.

    Args:
        image: (B, C, …) float32, normalised: 0 is what comes from outside a patch. The mask in a cascade's last channel
            goes where the reference goes, voxel for voxel and side for side, and keeps whole classes.
        reference: (B, 1, …) class indices, any integers below 2^24, of which 0 comes from outside; or float values,
            which are interpolated as the image is.
    """
    num_masks = int(options.mask_classes > 0)
    image, masks = image.split((image.shape[1] - num_masks, num_masks), dim=1)
    image = image.clone(memory_format=torch.contiguous_format)
    classes = torch.cat((reference, masks.to(reference.dtype)), dim=1).contiguous()
    deform(image, classes, is_elastic=options.elastic)
    for name in options.artefacts:
        ARTEFACTS[name](image)
    change_intensity(image)
    mirror(image, classes, mirrors)
    if not num_masks:
        return image, classes
    reference, mask = (part.contiguous() for part in classes.split(1, dim=1))
    make_mistakes(mask, options.mask_classes)
    return torch.cat((image, mask.to(image.dtype)), dim=1), reference
