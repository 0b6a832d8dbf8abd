"""In which form a network computes fastest on this machine: precision, memory layout, and compiled or not.

bf16 halves the time on some CPUs and lengthens it on others with the same instruction set, so it is measured, not assumed.
`plan` times the forms; `train` tries the compiler on top where the budget can pay for it.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, cast

import torch
from torch import nn

from pipeline.budget import Budget
from pipeline.config import fitting_losses
from pipeline.nn.device import Device, channels_last
from pipeline.nn.losses import make_loss
from pipeline.nn.networks import build_network
from pipeline.plan import Plan, Width

TIMED_STEPS = 2
LONG_ENOUGH_S = 1.5
HOPELESS = 1.25  # times as slow as another form: more steps would not change that
COMPILE_SHARE = 0.05  # of the budget, at most, for trying the compiler
COMPILE_S = {"cpu": 60.0, "cuda": 60.0}  # about what compiling a U-Net takes
COMPILED = " compiled"


@dataclass(frozen=True)
class Form:
    precision: torch.dtype
    layout: torch.memory_format
    is_compiled: bool = False

    @property
    def name(self) -> str:
        """For plans, checkpoints and logs, such as `bfloat16 channels_last_3d`."""
        words = (str(self.precision), str(self.layout))
        return " ".join(word.removeprefix("torch.") for word in words) + (COMPILED if self.is_compiled else "")

    def autocast(self, where: torch.device) -> torch.autocast:
        return torch.autocast(where.type, dtype=self.precision, enabled=self.precision != torch.float32)

    def prepare(self, network: nn.Module) -> nn.Module:
        """The network as it is called; it shares its weights with the one that is given."""
        network.to(memory_format=self.layout)  # type: ignore[call-overload]  # torch's stubs lack it
        return cast(nn.Module, torch.compile(network)) if self.is_compiled else network


def named_form(name: str) -> Form:
    precision, layout = name.removesuffix(COMPILED).split()
    return Form(getattr(torch, precision), getattr(torch, layout), name.endswith(COMPILED))


def usual_form(device: Device, dims: int) -> Form:
    """What is fastest on most machines."""
    return Form(device.half or torch.float32, channels_last(dims))


def candidate_forms(device: Device, dims: int) -> list[Form]:
    """The usual one first. A GPU always gains from half precision."""
    precisions = [device.half or torch.float32]
    if device.half and device.where.type == "cpu":
        precisions.append(torch.float32)
    return [Form(*parts) for parts in product(precisions, (channels_last(dims), torch.contiguous_format))]


def planned_form(plan: Plan, width: int, device: Device) -> Form:
    """What the plan found fastest; the usual form where it measured nothing or on another kind of device."""
    measured = planned_width(plan, width)
    return (
        named_form(measured.form)
        if measured and measured.device == device.where.type
        else usual_form(device, plan.dims)
    )


def prediction_form(plan: Plan, width: int, device: Device, *, is_compiled: bool) -> Form:
    """The planned one, measured while training, in the layout that is faster without gradients.

    Compiled code is with the channels last. On a CPU in float32 they otherwise cost a tenth, and half as much again where
    outputs of many labels are added up. It is not compiled here: how is for the caller to say.
    """
    form = planned_form(plan, width, device)
    if is_compiled:
        return replace(form, layout=channels_last(plan.dims))
    if device.where.type == "cpu" and form.precision == torch.float32:
        return replace(form, layout=torch.contiguous_format)
    return form


def planned_width(plan: Plan, width: int) -> Width | None:
    return next((measured for measured in plan.widths if measured.features == width), None)


def choose_form(
    plan: Plan, budget: Budget, settings: dict[str, Any], device: Device, measure: Callable[[Form], float] | None = None
) -> tuple[Form, str]:
    """The plan's form, compiled if that is faster by `measure` (seconds per step), and the reason.

    Compiled code is fastest with the channels last. `compile` true or false is obeyed; else a measurement must be able
    to pay for itself. A deterministic training asks no clock.
    """
    form = planned_form(plan, budget.width, device)
    compiled = Form(form.precision, channels_last(plan.dims), is_compiled=True)
    if settings["compile"] is True:
        return compiled, "compiled as set"
    if settings["compile"] is False or settings["deterministic"]:
        return form, "as planned"
    if COMPILE_S[device.where.type] > COMPILE_SHARE * expected_seconds(plan, budget):
        return form, "as planned; the budget is too short to try the compiler"
    sized = replace(plan, patch_size=budget.patch_size)
    clock = measure or (lambda form: seconds_per_step(form, sized, budget.width, budget.batch_size, device))
    seconds = {form: clock(form)}
    try:
        seconds[compiled] = clock(compiled)
    except Exception as error:  # the compiler fails in many ways where it lacks a C++ compiler or Triton
        return form, f"as planned; compiling is not possible here: {str(error).partition(chr(10))[0] or repr(error)}"
    best = min(seconds, key=lambda form: seconds[form])
    return best, f"as planned {seconds[form]:.3f} s per step, compiled {seconds[compiled]:.3f} s"


def expected_seconds(plan: Plan, budget: Budget) -> float:
    """How long the training will take, by the plan's measured widths; 0 when it was not measured."""
    if budget.seconds is not None:
        return budget.seconds
    measured = planned_width(plan, budget.width)
    return (budget.steps or 0) * budget.batch_size * (measured.seconds_per_sample if measured else 0.0)


def seconds_per_step(
    form: Form, plan: Plan, width: int, batch_size: int, device: Device, *, rival_s: float = math.inf
) -> float:
    """The fastest of two steps after one that warms up or compiles; of fewer where a single one takes long, or far longer
    than `rival_s`.

    The first one counts too where nothing is compiled, so that a network of minutes per step takes one step.
    """
    take_step = training_step(form, plan, width, device)
    seconds = [seconds_of(take_step, batch_size)]
    if form.is_compiled:
        seconds = [seconds_of(take_step, batch_size)]
    while len(seconds) <= TIMED_STEPS and sum(seconds) < LONG_ENOUGH_S:
        if len(seconds) > 1 and min(seconds) > HOPELESS * rival_s:
            break
        seconds.append(seconds_of(take_step, batch_size))
    return min(seconds)


def seconds_of(take_step: Callable[[int], None], batch_size: int) -> float:
    begin = time.perf_counter()
    take_step(batch_size)
    return time.perf_counter() - begin


def training_step(form: Form, plan: Plan, width: int, device: Device) -> Callable[[int], None]:
    """A function that trains on so many random patches, with all channels and outputs, and waits for the end."""
    network = form.prepare(build_network(plan, width).to(device.where).train())
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    usual = fitting_losses(plan.task, bool(plan.regions))[0]  # they differ by about 1 % of a step
    loss = make_loss({"loss": usual, "class_weights": []}, plan)

    def take_step(batch_size: int) -> None:
        image = torch.randn(batch_size, plan.num_channels, *plan.patch_size, device=device.where)
        shape = (batch_size, 1, *plan.patch_size)
        reference = torch.randint(max(1, len(plan.labels)), shape, device=device.where)
        if plan.previous:
            image[:, -1:] = reference
        with form.autocast(device.where):
            logits = network(image.to(memory_format=form.layout))
        loss(logits, reference).backward()
        optimizer.step()
        optimizer.zero_grad()
        device.wait()

    return take_step
