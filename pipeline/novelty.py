"""What of a new scan, or of its mask, lies outside of what the networks saw in training.

Compares with what `fingerprint` wrote down of each training case. Margins are wide: a flag says look, not wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.images import Grid, Segmentation, Shape, Spacing, Volume
from pipeline.intensity import ForegroundIntensity, Scheme, describe, percentiles
from pipeline.plan import RAS_AXES
from pipeline.records import Cohort
from pipeline.typed import from_json

SAMPLES = 1_000_000  # voxels of a scan whose intensity is described
SPACING_FACTOR = 1.5  # beyond the finest and the coarsest of training; augmentation covers about this much
FIELD_FACTOR = 2.0  # beyond the smallest and the largest field of view, and the smallest and largest volume of a label
INTENSITY_MARGIN = 0.25  # of the intensities that a scan spans
ABSOLUTE: tuple[Scheme, ...] = ("ct", "none")  # schemes to which the scan's own unit matters


@dataclass(frozen=True)
class Seen:
    """One scan along its RAS axes, how its axes are stored, and the intensity of each channel where any is not 0."""

    spacing_mm: Spacing
    shape: Shape
    orientation: str
    intensity: tuple[ForegroundIntensity, ...]


def look_at(channels: Volume, box: tuple[slice, ...], grid: Grid, orientation: str) -> Seen:
    """
    Args:
        channels: (C, I, J, K) in RAS order, on `grid`.
        box: outside of it all channels are 0.
        orientation: of the file.
    """
    intensity = tuple(describe(_sample(channel[box])) for channel in channels)
    return Seen(tuple(round(size, 6) for size in grid.spacing_mm), grid.shape, orientation, intensity)


def _sample(voxels: Volume) -> NDArray[np.float32]:
    if voxels.size <= SAMPLES:
        return voxels.ravel()
    return voxels[tuple(np.random.default_rng(0).integers(size, size=SAMPLES) for size in voxels.shape)]


def seen_in_training(fingerprint: Mapping[str, Any]) -> list[Seen]:
    keys = [field.name for field in fields(Seen)]
    return [from_json(Seen, {key: case[key] for key in keys}, case["case"]) for case in fingerprint["cases"]]


def volumes_ml(labels: Segmentation, spacing_mm: Spacing, cohort: Cohort) -> dict[str, float]:
    """By name how much of each label or region a label map, or a mask of ours, (I, J, K) holds."""
    num_values = 1 + int(labels.max(initial=0))
    planes = [
        np.bincount(plane.ravel(), minlength=num_values) for plane in labels
    ]  # of all, it takes 8 bytes per voxel
    counts = np.sum(planes, axis=0)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    return {
        target.name: float(sum(counts[value] for value in target.values if value < num_values)) * voxel_ml
        for target in cohort.targets
    }


def unusual(scan: Seen, training: Sequence[Seen], channels: Sequence[str], schemes: Sequence[Scheme]) -> list[str]:
    """What is outside of training in spacing, field of view, orientation and intensity, in words; empty if nothing is.

    Intensities are compared in the scan's unit where that matters (CT), else in standard deviations from the scan's mean,
    which is what the network sees.
    """
    flags = []
    for axis, name in enumerate(RAS_AXES):
        spacings = [one.spacing_mm[axis] for one in training]
        flags += _outside(f"spacing along {name}", scan.spacing_mm[axis], spacings, "mm", SPACING_FACTOR)
    for axis, name in enumerate(RAS_AXES):
        fields_mm = [one.spacing_mm[axis] * one.shape[axis] for one in training]
        found_mm = scan.spacing_mm[axis] * scan.shape[axis]
        flags += _outside(f"field of view along {name}", found_mm, fields_mm, "mm", FIELD_FACTOR)
    orientations = sorted({one.orientation for one in training})
    if scan.orientation not in orientations:
        flags.append(f"stored as {scan.orientation}, {', '.join(orientations)} in training (read in RAS all the same)")
    for index, (channel, scheme) in enumerate(zip(channels, schemes, strict=True)):
        intensities = [one.intensity[index] for one in training]
        flags += _unusual_intensity(channel, scan.intensity[index], intensities, is_absolute=scheme in ABSOLUTE)
    return flags


def unusual_volumes(found_ml: Mapping[str, float], training: Sequence[Mapping[str, float]]) -> list[str]:
    """Labels that are missing although every training case has them, or far smaller or larger than in any."""
    flags = []
    for name, volume in found_ml.items():
        volumes = [case[name] for case in training if name in case]  # earlier versions did not write them down
        if volume:
            flags += _outside(f"volume of {name}", volume, [seen for seen in volumes if seen], "ml", FIELD_FACTOR)
        elif volumes and all(volumes):
            flags.append(f"{name} not found, in every training case")
    return flags


def _outside(what: str, found: float, training: Sequence[float], unit: str, factor: float) -> list[str]:
    """One flag or none; none where training has nothing to compare with."""
    if not training or min(training) / factor <= found <= max(training) * factor:
        return []
    return [f"{what} {found:.4g} {unit}, {_range(training)} {unit} in training"]


def _unusual_intensity(
    channel: str, found: ForegroundIntensity, training: Sequence[ForegroundIntensity], *, is_absolute: bool
) -> list[str]:
    """The first of three percentiles that is off; the others nearly always are too."""
    own = percentiles(found, is_absolute=is_absolute)
    others = [percentiles(one, is_absolute=is_absolute) for one in training]
    margin = INTENSITY_MARGIN * float(np.median([one["percentile 99.5"] - one["percentile 0.5"] for one in others]))
    for name, value in own.items():
        seen = [one[name] for one in others]
        if not min(seen) - margin <= value <= max(seen) + margin:
            unit = "" if is_absolute else " standard deviations from the mean"
            return [f"intensity of {channel}: {name} {value:.4g}, {_range(seen)} in training{unit}"]
    return []


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
