"""Random changes of a whole batch at once, on the device where it lies, with torch's global random state.

nnU-Net's changes with its probabilities, in its order: one resampling for all that is spatial (`spatial`), the artefacts
of MR if asked for (`artefacts`), intensities (`intensity`), mirroring last. What happens to which sample, and how much,
is drawn on the CPU, so that a GPU is never waited for; only noise is drawn where the batch lies. Knows patches, not
where they come from. The functions of explicit parameters agree with MONAI's (`tests/test_augment.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.mirrors import Mirror
from pipeline.nn.augment.artefacts import ARTEFACTS
from pipeline.nn.augment.intensity import change_intensity
from pipeline.nn.augment.spatial import deform, mirror


@dataclass(frozen=True)
class Options:
    """What is drawn beside nnU-Net's changes."""

    elastic: bool
    artefacts: tuple[str, ...]


def read_options(train: Mapping[str, Any]) -> Options:
    """`train` is the section of the configuration."""
    return Options(elastic=train["elastic"], artefacts=tuple(train["artefacts"]))


def augment(
    image: torch.Tensor, reference: torch.Tensor, options: Options, mirrors: Sequence[Mirror]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A changed copy of a batch; every sample draws for itself.

    Args:
        image: (B, C, …) float32, normalised: 0 is what comes from outside a patch.
        reference: (B, 1, …) class indices, any integers below 2^24, of which 0 comes from outside; or float values,
            which are interpolated as the image is.
    """
    image = image.clone(memory_format=torch.contiguous_format)
    reference = reference.clone(memory_format=torch.contiguous_format)
    deform(image, reference, is_elastic=options.elastic)
    for name in options.artefacts:
        ARTEFACTS[name](image)
    change_intensity(image)
    mirror(image, reference, mirrors)
    return image, reference
