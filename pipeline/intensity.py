"""Intensity of one channel to what a network sees: by the rule of its modality, or the one that the user sets.

Pure functions on arrays; which rule a channel gets is decided by the plan.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.images import Volume

Scheme = Literal["ct", "zscore", "zscore_nonzero", "percentile", "rescale", "none"]
SMALLEST_STD = 1e-8


@dataclass(frozen=True)
class ForegroundIntensity:
    """Intensities of one channel, in the scan's units (HU in CT): in a plan, inside the labelled voxels of all cases."""

    mean: float
    median: float
    std: float
    minimum: float
    maximum: float
    percentile_00_5: float
    percentile_99_5: float


def describe(values: NDArray) -> ForegroundIntensity:
    """Of `(N,)` voxels; none at all gives zeros with a standard deviation of one."""
    if values.size == 0:
        return ForegroundIntensity(0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)
    low, median, high = np.percentile(values, (0.5, 50, 99.5))
    return ForegroundIntensity(
        mean=float(values.mean()),
        median=float(median),
        std=float(values.std()),
        minimum=float(values.min()),
        maximum=float(values.max()),
        percentile_00_5=float(low),
        percentile_99_5=float(high),
    )


def is_ct(channel: str) -> bool:
    """Whether a channel of this name is in Hounsfield units."""
    return channel.lower() == "ct"


def percentiles(one: ForegroundIntensity, *, is_absolute: bool) -> dict[str, float]:
    """Low, middle and high by name, in the scan's unit or, as z-scoring leaves them, in standard deviations from its mean."""
    found = {"percentile 0.5": one.percentile_00_5, "median": one.median, "percentile 99.5": one.percentile_99_5}
    if is_absolute:
        return found
    return {name: (value - one.mean) / one.std if one.std else 0.0 for name, value in found.items()}


def normalise(channel: Volume, scheme: Scheme, foreground: ForegroundIntensity) -> Volume:
    """(I, J, K) in scan units to (I, J, K) of about zero mean and unit variance, unless set otherwise.

    `ct`: clipped to the cohort's foreground percentiles, then its mean and standard deviation. `zscore`: the case's own;
    `zscore_nonzero`: its own over nonzero voxels, zero elsewhere. `rescale`: the case's minimum to 0, its maximum to 1;
    `percentile`: the same with percentiles 0.5 and 99.5, to which it is clipped. `none`: as it is. A constant channel gives
    zeros, except from `none` and `ct`.
    Source: nnU-Net v2.
    """
    if scheme == "none":
        return channel.astype(np.float32)
    if scheme == "rescale":
        low, high = float(channel.min()), float(channel.max())
        return ((channel - low) / max(high - low, SMALLEST_STD)).astype(np.float32)
    if scheme == "percentile":
        low, high = (float(value) for value in np.percentile(channel, (0.5, 99.5)))
        return standardised(np.clip(channel, low, high), low, high - low)
    if scheme == "ct":
        clipped = np.clip(channel, foreground.percentile_00_5, foreground.percentile_99_5)
        return standardised(clipped, foreground.mean, foreground.std)
    if scheme == "zscore":
        return standardised(channel, float(channel.mean()), float(channel.std()))
    inside = channel != 0
    if not inside.any():
        return np.zeros_like(channel, dtype=np.float32)
    scaled = standardised(channel, float(channel[inside].mean()), float(channel[inside].std()))
    scaled[~inside] = 0
    return scaled


def standardised(values: Volume, mean: float, std: float) -> Volume:
    """A new array; besides it nothing of its size is held, for scans are large."""
    scaled = np.subtract(values, mean, dtype=np.float32)
    scaled /= max(std, SMALLEST_STD)
    return scaled


def nonzero_box(channels: Volume) -> tuple[slice, ...]:
    """The smallest box of `(C, I, J, K)` that holds every voxel which is not zero in all channels; all of it if none is."""
    occupied = (channels != 0).any(axis=0)
    box = []
    for axis in range(occupied.ndim):
        others = tuple(other for other in range(occupied.ndim) if other != axis)
        indices = np.flatnonzero(occupied.any(axis=others))
        box.append(slice(int(indices[0]), int(indices[-1]) + 1) if indices.size else slice(0, occupied.shape[axis]))
    return tuple(box)
