"""Fingerprint, cohort and settings to a plan, by nnU-Net's rules. Every number gets its reason. Measures nothing."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from pipeline.architectures import ARCHITECTURES, fit_architecture
from pipeline.config import LOW_RESOLUTION, PREVIOUS
from pipeline.errors import PlanError
from pipeline.intensity import ForegroundIntensity, Scheme, is_ct
from pipeline.plan.record import RAS_AXES, Plan, by
from pipeline.records import Cohort
from pipeline.topology import (
    BASE_FEATURES,
    PRESETS,
    Memory,
    Preset,
    Topology,
    coarsest_first,
    fit_batch,
    fit_memory,
    low_resolution,
    memory_gib_of,
    target_spacing,
    topology,
)

SPLINE_ORDERS = {"linear": 1, "cubic": 3, "quintic": 5}
CROP_BELOW = 0.75  # share of nonzero voxels under which intensities are normalised inside them only


def plan_configuration(
    fingerprint: dict[str, Any], cohort: Cohort, configuration: str, wanted: dict[str, Any], memory_gib: float
) -> Plan:
    """The plan by rule, except for what `wanted` (the configuration's section of config.yaml) fixes.

    Raises:
        PlanError: no network fits the scans and the settings.
    """
    plan, low, why = _plan_at_resolution(fingerprint, cohort, configuration, wanted, memory_gib)
    if configuration != LOW_RESOLUTION or "spacing_mm" in wanted:
        return plan
    if low is None:
        return replace(plan, left_out=why)
    along = dict(zip(plan.axes, low, strict=True))
    wanted = {**wanted, "spacing_mm": [along[axis] for axis in RAS_AXES]}
    plan, *_ = _plan_at_resolution(fingerprint, cohort, configuration, wanted, memory_gib)
    return replace(plan, reasons={**plan.reasons, "spacing_mm": why})


def _plan_at_resolution(
    fingerprint: dict[str, Any], cohort: Cohort, configuration: str, wanted: dict[str, Any], memory_gib: float
) -> tuple[Plan, tuple[float, ...] | None, str]:
    """The plan, and the spacing of the low resolution that would go with it, or None; and why."""
    dims = wanted["dims"]
    reasons: dict[str, str] = {}
    axes, spacing, shape = _grid(fingerprint, wanted, reasons)
    memory = Memory(memory_gib, len(cohort.regions or cohort.labels) or 1, preset_of(wanted))
    fit = partial(_fit, wanted=wanted, memory=memory)
    fitted = fit(spacing[-dims:], shape[-dims:])
    reasons["patch_size"] = (
        "set in the configuration, padded so that every stride divides it"
        if "patch_size" in wanted
        else f"as much of the median scan as a batch of two allows in an estimated {memory_gib:.3g} GiB"
    )
    fitted, reasons["strides"] = fit_architecture(configuration, wanted, fitted)
    _refuse_wrong_depth(configuration, fitted, spacing[-dims:], wanted)
    batch_size = fit_batch(fitted, memory, median_voxels=float(np.prod(shape)), num_cases=fingerprint["num_cases"])
    share = memory.preset.largest_share_of_cohort
    reasons["batch_size"] = (
        f"what an estimated {memory_gib:.3g} GiB hold, at most {share:.0%} of the cohort; a short budget may take fewer"
    )
    if "batch_size" in wanted:
        batch_size = wanted["batch_size"]
        reasons["batch_size"] = "set in the configuration"
    low, why = low_resolution(spacing, shape, fit) if dims == 3 else (None, "")
    reasons["is_batch_dice"] = (
        "one Dice over the batch where a patch sees little: in 2D, and in 3D beside a low resolution"
    )
    reasons["memory_estimate_gib"] = f"of a batch, by nnU-Net's reference network, {BASE_FEATURES} features wide"
    if cohort.is_regression:
        reasons["target_scale"] = "root mean square of the target's values that are not 0"
    schemes = _normalisation(fingerprint, wanted, reasons)
    corrected = _bias_corrected(schemes, wanted, reasons)
    reasons["image_order"] = f"`resampling` is {wanted['resampling']}; label maps are resampled linearly"
    if previous := PREVIOUS.get(configuration):
        reasons["previous"] = f"refines the masks that {previous} predicts for scans which it never saw"
    reasons["widths"] = "features of the first stage with the measured seconds per sample of one training step"
    plan = Plan(
        configuration=configuration,
        left_out=None,
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
        is_batch_dice=dims == 2 or low is not None,
        memory_estimate_gib=round(memory_gib_of(fitted, batch_size, memory), 3),
        memory_measured_gib=None,
        strides=fitted.strides,
        kernels=fitted.kernels,
        **of_cohort(cohort),
        target_scale=fingerprint["target_rms"] or 1.0,
        normalisation=schemes,
        foreground_intensity=tuple(_foreground(channel) for channel in fingerprint["channels"]),
        widths=(),
        reasons=reasons,
        previous=previous,
        bias_corrected=corrected,
        image_order=SPLINE_ORDERS[wanted["resampling"]],
    )
    return plan, low, why


def of_cohort(cohort: Cohort) -> dict[str, Any]:
    """The fields of a plan that the cohort alone decides."""
    return {
        "task": cohort.task,
        "labels": tuple(sorted(cohort.labels)),
        "regions": tuple(tuple(values) for values in cohort.regions.values()),
        "ignore_label": cohort.ignore_label,
        "channels": tuple(cohort.channels.values()),
    }


def preset_of(wanted: dict[str, Any]) -> Preset:
    return PRESETS[wanted["preset"] if wanted["network"] == "residual_unet" else "plain"]


def _fit(
    spacing_mm: Sequence[float], median_shape: Sequence[float], *, wanted: dict[str, Any], memory: Memory
) -> Topology:
    if "patch_size" in wanted:
        return topology(spacing_mm, wanted["patch_size"], wanted.get("stages"))
    return fit_memory(spacing_mm, median_shape, memory, wanted.get("stages"))


def _refuse_wrong_depth(
    configuration: str, fitted: Topology, spacing_mm: Sequence[float], wanted: dict[str, Any]
) -> None:
    fewest = ARCHITECTURES[wanted["network"]].fewest_stages
    found, expected = len(fitted.strides), max(fewest, wanted.get("stages", 0))
    if found >= expected:
        return
    if "stages" in wanted:
        advice = f"Set `stages` from {fewest} up, and a larger `patch_size` for more of them."
    elif "patch_size" in wanted:
        advice = "Set a larger `patch_size`."
    else:
        advice = f"The scans are too small at {tuple(spacing_mm)} mm: set a finer `spacing_mm`."
    size = by(fitted.patch_size)
    raise PlanError(f"{configuration}: a patch of {size} voxels has {found} stages, {expected} expected. {advice}")


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


def _normalisation(fingerprint: dict[str, Any], wanted: dict[str, Any], reasons: dict[str, str]) -> tuple[Scheme, ...]:
    """Per channel the scheme that is set, else the one of its modality.

    Raises:
        PlanError: set for a channel that the cohort does not have.
    """
    is_cropped = fingerprint["median_fraction_nonzero"] < CROP_BELOW
    reasons["normalisation"] = (
        "CT: clipped to the foreground's percentiles 0.5 and 99.5 of the cohort; else z-score"
        + (f" inside nonzero voxels, {fingerprint['median_fraction_nonzero']:.0%} of a scan" if is_cropped else "")
        + (f"; channel {', '.join(wanted['normalisation'])} as set" if wanted["normalisation"] else "")
    )
    names = [channel["channel"] for channel in fingerprint["channels"]]
    by_rule: dict[str, Scheme] = {str(index): "ct" if is_ct(name) else "zscore" for index, name in enumerate(names)}
    if unknown := sorted(wanted["normalisation"].keys() - by_rule.keys()):
        raise PlanError(
            f"config: normalisation has channel {', '.join(unknown)}, yet the cohort has {', '.join(by_rule)} "
            f"({', '.join(names)}). Correct the number."
        )
    inside: dict[Scheme, Scheme] = {"zscore": "zscore_nonzero"} if is_cropped else {}
    return tuple(inside.get(scheme, scheme) for scheme in {**by_rule, **wanted["normalisation"]}.values())


def _bias_corrected(schemes: Sequence[Scheme], wanted: dict[str, Any], reasons: dict[str, str]) -> tuple[int, ...]:
    """
    Raises:
        PlanError: set for a channel that is not there, or whose values have a meaning that a correction would change.
    """
    corrected = tuple(sorted(wanted["bias_correction"]))
    for index in corrected:
        if index >= len(schemes) or schemes[index] == "ct":
            found = "is CT, whose units are absolute" if index < len(schemes) else f"is not one of {len(schemes)}"
            raise PlanError(f"config: bias_correction has channel {index}, which {found}: MR expected. Remove it.")
    if corrected:
        reasons["bias_corrected"] = "set in the configuration: N4, before anything else is done to the channel"
    return corrected


def _foreground(channel: dict[str, Any]) -> ForegroundIntensity:
    return ForegroundIntensity(**{key: value for key, value in channel.items() if key != "channel"})
