"""The plan of one configuration as plain data: what it holds, how it is read, and what an edit by hand may get wrong.

Knows what a plan says, not how its numbers come about.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import records
from pipeline.config import PREVIOUS, SCHEMA
from pipeline.errors import PlanError
from pipeline.intensity import ForegroundIntensity, Scheme
from pipeline.records import Task
from pipeline.topology import Topology, stage_features
from pipeline.typed import from_json

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
    `previous` is the configuration whose mask of the same scan a cascade gets besides the channels.
    `bias_corrected` are the indices of channels whose brightness is made even, `image_order` the order of the spline that
    resamples channels.
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
    previous: str | None = None
    bias_corrected: tuple[int, ...] = ()
    image_order: int = 3

    @property
    def has_background(self) -> bool:
        """Whether the first output is the background: one of labels of which a voxel has exactly one."""
        return self.task == "segmentation" and not self.regions

    @property
    def num_outputs(self) -> int:
        """Maps that the network puts out: one per label with background, or per region, or of the values."""
        return 1 if self.task == "regression" else len(self.regions or self.labels)

    @property
    def num_channels(self) -> int:
        """Channels of a prepared image: the scan's, and in a cascade last the mask before it, as class indices."""
        return len(self.channels) + (self.previous is not None)

    @property
    def num_inputs(self) -> int:
        """Maps that the network takes in: one per channel, in a cascade also one per label but the background, or region."""
        return len(self.channels) + (self.num_outputs - self.has_background if self.previous else 0)

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
        (
            plan.previous == PREVIOUS.get(plan.configuration),
            f"previous is {plan.previous!r}, {PREVIOUS.get(plan.configuration)!r} expected",
        ),
        (
            set(plan.bias_corrected) <= set(range(len(plan.channels))),
            f"bias_corrected is {plan.bias_corrected}, numbers below {len(plan.channels)} expected",
        ),
        (0 <= plan.image_order <= 5, f"image_order is {plan.image_order}, 0 to 5 expected"),
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
