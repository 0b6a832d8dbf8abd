"""Fingerprint and settings to `<configuration>.json`: every number that the later stages need, each with its reason.

Decides spacing, patch, batch, topology and normalisation by nnU-Net's rules, then has the real machine try the network:
patch and batch are corrected until what a training step takes fits into memory, and steps are timed at several network
widths, so that `train` can take the widest network that its budget can teach anything. The JSON may be edited by hand and
is then kept. Imports no torch: the network is tried in a process of its own.
"""

import hashlib
import json
import math
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import errors, records
from pipeline.architectures import ARCHITECTURES, candidate_widths, fit_architecture
from pipeline.config import LOW_RESOLUTION, SCHEMA
from pipeline.errors import PlanError
from pipeline.fit import Measured, fit_to_memory
from pipeline.intensity import ForegroundIntensity, Scheme
from pipeline.paths import Results
from pipeline.records import Cohort, Task
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
    stage_features,
    target_spacing,
    topology,
)
from pipeline.typed import from_json

CROP_BELOW = 0.75  # share of nonzero voxels under which intensities are normalised inside them only
RAS_AXES = "xyz"
NETWORKS = SCHEMA["$defs"]["configuration"]["properties"]["network"]["enum"]
DIGEST = "digest"  # of the JSON as the stage wrote it; another one tells an edit by hand


@dataclass(frozen=True)
class Width:
    """What one training step costs on the machine that made the plan, in which form it is fastest on what device."""

    features: int
    seconds_per_sample: float
    form: str = ""
    device: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One configuration. Sizes and spacings run along `axes`, a permutation of the RAS axes x, y, z, coarsest first.

    2D networks see slices across the first axis, whose spacing is `None`: a scan keeps its own. `regions` are groups of
    label values that may overlap, in the order in which they are painted; without them every voxel has one label.
    A regression learns its values divided by `target_scale`, so that they are about one.
    `left_out` is why the cohort does not need this configuration; then nothing of it is trained.
    """

    configuration: str
    left_out: str | None
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
    is_batch_dice: bool
    memory_estimate_gib: float
    memory_measured_gib: float | None
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    labels: tuple[int, ...]
    regions: tuple[tuple[int, ...], ...]
    ignore_label: int | None
    target_scale: float
    channels: tuple[str, ...]
    normalisation: tuple[Scheme, ...]
    foreground_intensity: tuple[ForegroundIntensity, ...]
    widths: tuple[Width, ...]
    reasons: dict[str, str]

    @property
    def has_background(self) -> bool:
        """Whether the first output is the background: one of labels of which a voxel has exactly one."""
        return self.task == "segmentation" and not self.regions

    @property
    def num_outputs(self) -> int:
        """Maps that the network puts out: one per label with background, or per region, or of the values."""
        return 1 if self.task == "regression" else len(self.regions or self.labels)

    def features(self, width: int) -> tuple[int, ...]:
        """Feature maps per stage of the network whose first stage has `width`."""
        return stage_features(len(self.strides), self.dims, width)


def read_plan(path: Path) -> Plan:
    """
    Raises:
        PlanError: edited by hand to something that no stage could use.
    """
    advice = "Correct it, or delete it to plan anew."
    try:
        plan = plan_from_json(records.read_json(path))
    except ValueError as error:  # also of text that is not JSON
        raise PlanError(f"{path}: {error}. {advice}") from error
    if found := contradictions(plan):
        raise PlanError(f"{path}: {'; '.join(found)}. {advice}")
    return plan


def plan_from_json(content: dict[str, Any]) -> Plan:
    plan: Plan = from_json(Plan, {key: value for key, value in content.items() if key != DIGEST})
    return plan


def contradictions(plan: Plan) -> list[str]:
    """What an edit by hand got wrong: values that exclude each other, each as found and expected; empty if none."""
    dims, stages = plan.dims, (*plan.strides, *plan.kernels)
    lengths = [
        (dims in (2, 3), f"dims is {dims}, 2 or 3 expected"),
        (sorted(plan.axes) == sorted(RAS_AXES), f"axes is {plan.axes!r}, an order of {RAS_AXES} expected"),
        (len(plan.spacing_mm) == 3, f"spacing_mm has {len(plan.spacing_mm)} numbers, 3 expected"),
        (len(plan.patch_size) == dims, f"patch_size has {len(plan.patch_size)} numbers, {dims} expected"),
        (
            len(plan.strides) == len(plan.kernels) > 0,
            f"strides has {len(plan.strides)} stages, kernels {len(plan.kernels)}, as many expected",
        ),
        (
            all(len(stage) == dims and min(stage) > 0 for stage in stages),
            f"a stage of strides or kernels has not {dims} numbers of 1 or more",
        ),
        (
            len(plan.normalisation) == len(plan.channels) == len(plan.foreground_intensity),
            f"normalisation has {len(plan.normalisation)} entries, {len(plan.channels)} channels",
        ),
    ]
    if wrong := [text for holds, text in lengths if not holds]:
        return wrong
    divisors = Topology(plan.strides, plan.kernels, plan.patch_size).divisors
    values = [
        (plan.network in NETWORKS, f"network is {plan.network!r}, one of {', '.join(NETWORKS)} expected"),
        (plan.widths or plan.left_out, "widths is empty, one or more with features and seconds_per_sample expected"),
        (plan.batch_size > 0, f"batch_size is {plan.batch_size}, 1 or more expected"),
        (
            all(edge > 0 and edge % divisor == 0 for edge, divisor in zip(plan.patch_size, divisors, strict=True)),
            f"patch_size is {by(plan.patch_size)}, multiples of the strides' products {by(divisors)} expected",
        ),
    ]
    return [text for holds, text in values if not holds]


def by(edges: Sequence[int]) -> str:
    """Sizes as a person writes them: `40 × 56 × 40`."""
    return " × ".join(str(edge) for edge in edges)


def digest(content: dict[str, Any]) -> str:
    """Of what a plan says, however it is laid out."""
    text = json.dumps({key: value for key, value in content.items() if key != DIGEST}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_edited(path: Path) -> bool:
    """Whether the plan says something else than the stage wrote; also if it cannot be read any more."""
    try:
        content = records.read_json(path)
    except ValueError:
        return True
    return content.get(DIGEST) != digest(content)


def edited_note(path: Path) -> str:
    return f"{path} was edited by hand and is kept. Delete it to plan anew."


def of_cohort(cohort: Cohort) -> dict[str, Any]:
    """The fields of a plan that the cohort alone decides."""
    return {
        "task": cohort.task,
        "labels": tuple(sorted(cohort.labels)),
        "regions": tuple(tuple(values) for values in cohort.regions.values()),
        "ignore_label": cohort.ignore_label,
        "channels": tuple(cohort.channels.values()),
    }


def refuse_other_cohort(path: Path, cohort: Cohort) -> None:
    """
    Raises:
        PlanError: edited by hand and of no use, or for a cohort that has changed since.
    """
    plan = read_plan(path)
    wrong = [
        f"{key} is {getattr(plan, key)}, {value} expected"
        for key, value in of_cohort(cohort).items()
        if getattr(plan, key) != value
    ]
    if wrong:
        raise PlanError(
            f"{path}: edited by hand for another cohort: {'; '.join(wrong)}. Delete it to plan anew, or undo the change."
        )


def main(
    results: str, configuration: str, settings: str, memory_gib: float = 8, device: str = "auto", threads: int = 1
) -> None:
    files = Results(results)
    path = files.plan(configuration)
    if path.exists() and is_edited(path):
        refuse_other_cohort(path, records.read_cohort(files.cohort))
        path.touch()
        print(edited_note(path))
        return
    wanted = json.loads(settings)
    widths = candidate_widths(wanted)
    fingerprint, cohort = records.read_json(files.fingerprint), records.read_cohort(files.cohort)
    replan = partial(plan_configuration, fingerprint, cohort, configuration, wanted)
    plan = replan(memory_gib)
    if plan.left_out is None:
        measure = partial(measure_step, widths=widths, device=device, threads=threads)
        plan, measured = fit_to_memory(replan, partial(measure, memory_gib=memory_gib), memory_gib)
        if measured is not None and not measured.seconds_per_sample:
            measured = measure(plan, memory_gib=math.inf)
        plan = with_measured(plan, measured, max(widths), memory_gib)
    content = asdict(plan)
    records.write_json(path, {**content, DIGEST: digest(json.loads(json.dumps(content)))})
    if plan.left_out:
        print(f"{configuration}: left out, for {plan.left_out}. Set its `spacing_mm` to train it all the same.")
    print("\n".join(f"{configuration} {key}: {content[key]} ({reason})" for key, reason in plan.reasons.items()))


def with_measured(plan: Plan, measured: Measured | None, widest: int, memory_gib: float) -> Plan:
    """
    Raises:
        PlanError: nothing could be measured, for there is not enough memory.
    """
    if measured is None:
        raise PlanError(
            f"{plan.configuration}: no memory for a batch of {plan.batch_size} patches of {by(plan.patch_size)} voxels. "
            "Set a smaller `patch_size`, `batch_size` or `features`."
        )
    reason = f"peak of a training step on {measured.device}, {widest} features wide"
    if measured.gib > memory_gib:
        reason += f"; over memory_gib, {memory_gib:g}, for sizes are set or as small as they get"
    return replace(
        plan,
        memory_measured_gib=round(measured.gib, 3),
        widths=tuple(
            Width(width, round(seconds, 5), measured.forms[width], measured.device)
            for width, seconds in measured.seconds_per_sample.items()
        ),
        reasons={**plan.reasons, "memory_measured_gib": reason},
    )


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
    )
    return plan, low, why


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
    by_rule: dict[str, Scheme] = {
        str(index): "ct" if name.lower() == "ct" else "zscore" for index, name in enumerate(names)
    }
    if unknown := sorted(wanted["normalisation"].keys() - by_rule.keys()):
        raise PlanError(
            f"config: normalisation has channel {', '.join(unknown)}, yet the cohort has {', '.join(by_rule)} "
            f"({', '.join(names)}). Correct the number."
        )
    inside: dict[Scheme, Scheme] = {"zscore": "zscore_nonzero"} if is_cropped else {}
    return tuple(inside.get(scheme, scheme) for scheme in {**by_rule, **wanted["normalisation"]}.values())


def _foreground(channel: dict[str, Any]) -> ForegroundIntensity:
    return ForegroundIntensity(**{key: value for key, value in channel.items() if key != "channel"})


def measure_step(plan: Plan, *, widths: list[int], memory_gib: float, device: str, threads: int) -> Measured | None:
    """Memory of a training step at the largest width and, if it is within `memory_gib`, the time at all widths.

    On a GPU, where the plan may still grow, nothing is timed unless `memory_gib` is infinite.
    Asks a process that may import torch, and may run out of memory: None.
    """
    command = [sys.executable, "-m", "pipeline.nn.probe", "--device", device, "--threads", str(threads)]
    command += ["--memory-gib", str(memory_gib), *(part for width in widths for part in ("--features", str(width)))]
    done = subprocess.run(command, input=json.dumps(asdict(plan)), capture_output=True, text=True)
    if done.returncode == -signal.SIGKILL:  # what the system does when memory runs out
        return None
    if done.returncode:
        raise PlanError(f"{plan.configuration}: no training step could be measured.\n{done.stderr.strip()}")
    measured = json.loads(done.stdout.splitlines()[-1])
    return (
        None
        if measured is None
        else Measured(
            measured["gib"],
            measured["device"],
            *({int(width): value for width, value in measured[key].items()} for key in ("seconds_per_sample", "forms")),
        )
    )


if __name__ == "__main__":
    errors.run(main)
