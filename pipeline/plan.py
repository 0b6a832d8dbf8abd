"""Fingerprint and settings to `<configuration>.json`: every number that the later stages need, each with its reason.

Decides spacing, patch, batch, topology and normalisation by nnU-Net's rules, and has the real machine time one training
step at several network widths, so that `train` can take the widest network that its budget can teach anything.
The JSON may be edited by hand. Imports no torch: the steps are timed in a process of their own.
"""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline import errors, records
from pipeline.errors import PlanError
from pipeline.intensity import ForegroundIntensity, Scheme
from pipeline.paths import Results
from pipeline.records import Cohort
from pipeline.topology import (
    BASE_FEATURES,
    coarsest_first,
    fit_batch,
    fit_memory,
    stage_features,
    target_spacing,
    topology,
)

WIDTHS = (8, 16, BASE_FEATURES)
FEWEST_STAGES = 3  # of MONAI's DynUNet
CROP_BELOW = 0.75  # share of nonzero voxels under which intensities are normalised inside them only
RAS_AXES = "xyz"
Task = Literal["segmentation", "regression"]


@dataclass(frozen=True)
class Width:
    """What one training step costs on the machine that made the plan."""

    features: int
    seconds_per_sample: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One configuration. Sizes and spacings run along `axes`, a permutation of the RAS axes x, y, z, coarsest first.

    2D networks see slices across the first axis, whose spacing is `None`: a scan keeps its own. `regions` are groups of
    label values that may overlap, in the order in which they are painted; without them every voxel has one label.
    """

    configuration: str
    task: Task
    dims: int
    network: str
    preset: str
    encoder: str
    is_padded: bool
    dropout: float
    axes: str
    spacing_mm: tuple[float | None, ...]
    median_shape: tuple[int, ...]
    patch_size: tuple[int, ...]
    batch_size: int
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    labels: tuple[int, ...]
    regions: tuple[tuple[int, ...], ...]
    ignore_label: int | None
    channels: tuple[str, ...]
    normalisation: tuple[Scheme, ...]
    foreground_intensity: tuple[ForegroundIntensity, ...]
    widths: tuple[Width, ...]
    reasons: dict[str, str]

    @property
    def num_outputs(self) -> int:
        """Maps that the network puts out: one per label with background, or per region."""
        return len(self.regions or self.labels)

    def features(self, width: int) -> tuple[int, ...]:
        """Feature maps per stage of the network whose first stage has `width`."""
        return stage_features(len(self.strides), self.dims, width)


def read_plan(path: Path) -> Plan:
    return plan_from_json(records.read_json(path))


def plan_from_json(content: dict[str, Any]) -> Plan:
    lists = {key: tuple(value) for key, value in content.items() if isinstance(value, list)}
    return Plan(
        **{
            **content,
            **lists,
            "strides": tuple(tuple(stride) for stride in content["strides"]),
            "kernels": tuple(tuple(kernel) for kernel in content["kernels"]),
            "regions": tuple(tuple(region) for region in content["regions"]),
            "foreground_intensity": tuple(ForegroundIntensity(**part) for part in content["foreground_intensity"]),
            "widths": tuple(Width(**part) for part in content["widths"]),
        }
    )


def mirror_axes(plan: Plan, names: list[str]) -> list[int]:
    """Patient axes such as `x` to the spatial axes of a patch; a 2D patch lacks the first of the plan's."""
    axes = plan.axes[-plan.dims :]
    return [axes.index(name) for name in names if name in axes]


def main(
    results: str, configuration: str, settings: str, memory_gib: float = 8, device: str = "auto", threads: int = 1
) -> None:
    files = Results(results)
    wanted = json.loads(settings)
    plan = plan_configuration(
        records.read_json(files.fingerprint), records.read_cohort(files.cohort), configuration, wanted, memory_gib
    )
    candidates = [wanted["features"]] if "features" in wanted else list(WIDTHS)
    content = {**asdict(plan), "widths": time_widths(plan, candidates, device, threads)}
    records.write_json(files.plan(configuration), content)
    print("\n".join(f"{configuration} {key}: {content[key]} ({reason})" for key, reason in plan.reasons.items()))


def plan_configuration(
    fingerprint: dict[str, Any], cohort: Cohort, configuration: str, wanted: dict[str, Any], memory_gib: float
) -> Plan:
    """The plan by rule, except for what `wanted` (the configuration's section of config.yaml) fixes.

    Raises:
        PlanError: the patch is too small for a U-Net of three stages.
    """
    dims = wanted["dims"]
    reasons: dict[str, str] = {}
    axes, spacing, shape = _grid(fingerprint, wanted, reasons)
    network_spacing, network_shape = spacing[-dims:], shape[-dims:]
    if "patch_size" in wanted:
        fitted = topology(network_spacing, wanted["patch_size"])
        reasons["patch_size"] = "set in the configuration, padded so that every stride divides it"
    else:
        fitted = fit_memory(network_spacing, network_shape, len(cohort.labels), memory_gib)
        reasons["patch_size"] = f"as much of the median scan as a batch of two allows in {memory_gib:g} GiB"
    if len(fitted.strides) < FEWEST_STAGES:
        raise PlanError(
            f"{configuration}: a patch of {fitted.patch_size} voxels allows {len(fitted.strides)} stages, "
            f"{FEWEST_STAGES} expected. The scans are too small at {network_spacing} mm: set a finer `spacing_mm`."
        )
    batch_size = fit_batch(
        fitted,
        len(cohort.labels),
        memory_gib,
        median_voxels=float(np.prod(shape)),
        num_cases=fingerprint["num_cases"],
    )
    reasons["batch_size"] = f"what {memory_gib:g} GiB hold, at most 5 % of the cohort; a short budget may take fewer"
    if "batch_size" in wanted:
        batch_size = wanted["batch_size"]
        reasons["batch_size"] = "set in the configuration"
    reasons["strides"] = "halve the axes of similar spacing until an edge would fall under 4 voxels"
    schemes = _normalisation(fingerprint, reasons)
    reasons["widths"] = "features of the first stage with the measured seconds per sample of one training step"
    return Plan(
        configuration=configuration,
        task="segmentation",
        dims=dims,
        network=wanted["network"],
        preset=wanted["preset"],
        encoder=wanted["encoder"],
        is_padded=wanted["padded"],
        dropout=wanted["dropout"],
        axes=axes,
        spacing_mm=tuple(spacing) if dims == 3 else (None, *spacing[1:]),
        median_shape=tuple(shape),
        patch_size=fitted.patch_size,
        batch_size=batch_size,
        strides=fitted.strides,
        kernels=fitted.kernels,
        labels=tuple(sorted(cohort.labels)),
        regions=(),
        ignore_label=cohort.ignore_label,
        channels=tuple(cohort.channels.values()),
        normalisation=schemes,
        foreground_intensity=tuple(_foreground(channel) for channel in fingerprint["channels"]),
        widths=(),
        reasons=reasons,
    )


def _grid(
    fingerprint: dict[str, Any], wanted: dict[str, Any], reasons: dict[str, str]
) -> tuple[str, list[float], list[int]]:
    """Axes, target spacing (mm) and median shape (voxels), coarsest axis first."""
    z_y_x = (2, 1, 0)  # axial slices lead among equals, as in nnU-Net's arrays
    spacings = np.array([case["spacing_mm"] for case in fingerprint["cases"]])[:, z_y_x]
    shapes = np.array([case["shape_nonzero"] for case in fingerprint["cases"]])[:, z_y_x]
    if "spacing_mm" in wanted:
        target = tuple(float(wanted["spacing_mm"][axis]) for axis in z_y_x)
        reasons["spacing_mm"] = "set in the configuration"
    else:
        target = target_spacing(spacings, shapes)
        reasons["spacing_mm"] = "median of the cohort; the coarse axis of anisotropic scans at its 10th percentile"
    order = coarsest_first(target)
    axes = "".join(RAS_AXES[z_y_x[axis]] for axis in order)
    reasons["axes"] = "the axis of the largest spacing leads; 2D networks see the slices across it"
    if wanted["dims"] == 2:
        reasons["spacing_mm"] += "; no resampling across slices"
    median_shape = np.median(np.round(spacings / target * shapes), axis=0)
    reasons["median_shape"] = "voxels of the median scan at the target spacing"
    return axes, [round(target[axis], 6) for axis in order], [int(median_shape[axis]) for axis in order]


def _normalisation(fingerprint: dict[str, Any], reasons: dict[str, str]) -> tuple[Scheme, ...]:
    is_cropped = fingerprint["median_fraction_nonzero"] < CROP_BELOW
    reasons["normalisation"] = (
        "CT: clipped to the foreground's percentiles 0.5 and 99.5 of the cohort; else z-score"
        + (f" inside nonzero voxels, {fingerprint['median_fraction_nonzero']:.0%} of a scan" if is_cropped else "")
    )
    other: Scheme = "zscore_nonzero" if is_cropped else "zscore"
    return tuple("ct" if channel["channel"].lower() == "ct" else other for channel in fingerprint["channels"])


def _foreground(channel: dict[str, Any]) -> ForegroundIntensity:
    return ForegroundIntensity(**{key: value for key, value in channel.items() if key != "channel"})


def time_widths(plan: Plan, candidates: list[int], device: str, threads: int) -> list[dict[str, float]]:
    """Seconds per sample of a training step for each candidate width, measured in a process that may import torch."""
    command = [sys.executable, "-m", "pipeline.nn.probe", "--device", device, "--threads", str(threads)]
    command += [part for width in candidates for part in ("--features", str(width))]
    done = subprocess.run(command, input=json.dumps(asdict(plan)), capture_output=True, text=True)
    if done.returncode:
        raise PlanError(f"{plan.configuration}: no training step could be measured.\n{done.stderr.strip()}")
    measured: list[dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return measured


if __name__ == "__main__":
    errors.run(main)
