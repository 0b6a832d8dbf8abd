"""What one training step costs on this machine, for a plan on standard input: memory, and seconds at several widths.

Prints JSON. A process of its own, so that `plan` need not import torch and outlives it when memory runs out.
"""

import json
import math
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import torch

from pipeline import errors
from pipeline.fit import Measured
from pipeline.nn.device import Device, pick_device
from pipeline.nn.forms import HOPELESS, Form, candidate_forms, seconds_per_step, training_step, usual_form
from pipeline.plan import Plan, plan_from_json

PROBE_SECONDS = 20.0  # once this is spent, further forms and middle widths are left out
TIMED_CPU_VOXELS = 50_000  # per step, so that the overhead of a layer does not hide its cost
MEASURED_CPU_VOXELS = 100_000  # of which the memory is measured: enough for two patches of most plans
GIB = 2**30
MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024  # the unit of getrusage


def main(
    features: list[int], memory_gib: float, device: str = "auto", threads: int = 1, deterministic: bool = False
) -> None:
    torch.set_num_threads(threads)
    plan, processor = plan_from_json(json.load(sys.stdin)), pick_device(device)
    measured = measure_step(plan, sorted(features), processor, memory_gib, is_deterministic=deterministic)
    print(json.dumps(None if measured is None else asdict(measured)))


def measure_step(
    plan: Plan, widths: list[int], device: Device, memory_gib: float, *, is_deterministic: bool = False
) -> Measured | None:
    """Memory at the largest width and, if the plan is final, the time at all widths; None without enough memory."""
    gib = (memory_on_gpu if device.where.type == "cuda" else memory_on_cpu)(plan, widths[-1], device)
    if gib is None:
        return None
    is_final = gib <= memory_gib and (
        device.where.type == "cpu" or math.isinf(memory_gib)
    )  # a GPU's plan may still grow
    timed = time_widths(plan, widths, device, is_deterministic=is_deterministic) if is_final else ()
    return Measured(gib, device.where.type, *timed)


def time_widths(
    plan: Plan, widths: list[int], device: Device, *, is_deterministic: bool = False
) -> tuple[dict[int, float], dict[int, str]]:
    """Seconds per sample and the form they were measured in, narrowest first.

    In a deterministic run no clock chooses: there is only the usual form.
    The narrowest tries every form, each wider one half of them, the fastest, that are not far slower than the best. The
    widest is measured however long it takes.
    """
    begin = time.perf_counter()
    forms = [usual_form(device, plan.dims)] if is_deterministic else candidate_forms(device, plan.dims)
    batch = plan.batch_size
    if device.where.type == "cpu":  # a single patch goes through float32 convolutions another, far slower way
        batch = min(batch, max(2, probe_batch(plan, TIMED_CPU_VOXELS)))
    measured: dict[int, float] = {}
    names: dict[int, str] = {}
    for width in widths:
        if measured and width != widths[-1] and time.perf_counter() - begin > PROBE_SECONDS:
            continue
        seconds: dict[Form, float] = {}
        for form in forms:
            if not seconds or time.perf_counter() - begin < PROBE_SECONDS:
                try:
                    rival_s = batch * min(seconds.values(), default=math.inf)
                    seconds[form] = seconds_per_step(form, plan, width, batch, device, rival_s=rival_s) / batch
                except torch.OutOfMemoryError:  # memory was measured with the usual form, which comes first
                    if not seconds:
                        raise
        forms = sorted(seconds, key=lambda form: seconds[form])
        forms = [form for form in forms[: max(1, len(forms) // 2)] if seconds[form] < HOPELESS * seconds[forms[0]]]
        measured[width], names[width] = seconds[forms[0]], forms[0].name
    return measured, names


def memory_on_gpu(plan: Plan, width: int, device: Device) -> float | None:
    """GiB that torch has allocated at most in steps of the plan's batch; None if there are fewer."""
    try:
        take_step = training_step(usual_form(device, plan.dims), plan, width, device)
        for _ in range(2):  # the optimizer's state comes with the first
            take_step(plan.batch_size)
    except torch.OutOfMemoryError:
        return None
    return torch.cuda.max_memory_allocated(device.where) / GIB


def memory_on_cpu(plan: Plan, width: int, device: Device) -> float:
    """GiB by which this process grows in a step of the plan's batch, of which a small part is run to keep this short."""
    before, small = psutil.Process().memory_info().rss / GIB, probe_batch(plan, MEASURED_CPU_VOXELS)
    take_step = training_step(usual_form(device, plan.dims), plan, width, device)
    take_step(1)
    of_one = peak_gib() - before
    if small == 1:  # a large patch, beside which the weights are little
        return of_one * plan.batch_size
    take_step(small)
    of_small = peak_gib() - before
    return of_small + (plan.batch_size - small) * (of_small - of_one) / (small - 1)


def peak_gib() -> float:
    """The most memory that this process has had so far.

    Linux's own count starts anew with the program; getrusage's begins with what the calling process had.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):  # some containers leave it out
            return int(line.split()[1]) * 1024 / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_BYTES / GIB


def probe_batch(plan: Plan, num_voxels: int) -> int:
    """Patches of so many voxels together, or of more."""
    return min(plan.batch_size, math.ceil(num_voxels / math.prod(plan.patch_size)))


if __name__ == "__main__":
    errors.run(main)
