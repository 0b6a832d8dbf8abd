"""Predictions of a whole scan at once, for tests and benchmarks that compare or score them."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.images import Volume
from pipeline.nn.checkpoints import Model
from pipeline.nn.device import Device
from pipeline.nn.sliding import predict_slabs
from pipeline.preprocess import Placement
from pipeline.windows import Window


def predict_densely(models: Sequence[Model], image: Volume, device: Device, **window) -> Volume:
    """(C, D, H, W) to (L, D, H, W), in windows of the plan's patch unless `size` says otherwise."""
    wanted = {"size": models[0].plan.patch_size, "overlap": 0.5, **window}
    return gathered(predict_slabs(models, image, device, Window(**wanted)))


def gathered(slabs: Iterable[NDArray]) -> NDArray:
    return np.concatenate([slab.copy() for slab in slabs], axis=1)


def as_it_is(shape: Sequence[int]) -> Placement:
    """Of a prepared scan that was neither turned, cropped nor resampled."""
    return Placement("xyz", tuple(shape), tuple((0, edge) for edge in shape), tuple(shape), (1.0, 1.0, 1.0))
