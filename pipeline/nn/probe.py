"""What one training step costs on this machine, for a plan on standard input and each `--features` width; JSON out.

A process of its own, so that `plan` need not import torch.
"""

import json
import sys
import time
from math import ceil, prod

import torch

from pipeline import errors
from pipeline.config import fitting_losses
from pipeline.nn.device import Device, pick_device
from pipeline.nn.losses import make_loss
from pipeline.nn.networks import build_network
from pipeline.plan import Plan, plan_from_json

PROBE_SECONDS = 20.0  # wider networks are left out once this is spent
MIN_CPU_VOXELS = 100_000  # per step, so that the overhead of a layer does not hide its cost
TIMED_STEPS = 3


def main(features: list[int], device: str = "auto", threads: int = 1) -> None:
    torch.set_num_threads(threads)
    plan = plan_from_json(json.load(sys.stdin))
    print(json.dumps(time_widths(plan, sorted(features), pick_device(device))))


def time_widths(plan: Plan, widths: list[int], device: Device) -> list[dict[str, float]]:
    """Narrowest first; at least one is measured."""
    begin = time.perf_counter()
    measured: list[dict[str, float]] = []
    for width in widths:
        if measured and time.perf_counter() - begin > PROBE_SECONDS:
            break
        measured.append({"features": width, "seconds_per_sample": round(seconds_per_sample(plan, width, device), 5)})
    return measured


def seconds_per_sample(plan: Plan, width: int, device: Device) -> float:
    """The fastest of three steps after one to warm up, divided by the batch."""
    batch = plan.batch_size if device.where.type == "cuda" else probe_batch(plan)
    network = build_network(plan, width).to(device.where).train()
    optimizer = torch.optim.AdamW(network.parameters())
    usual = fitting_losses(plan.task, bool(plan.regions))[0]  # they differ by about 1 % of a step
    measure = make_loss({"loss": usual, "class_weights": []}, plan)
    image = torch.randn(batch, len(plan.channels), *plan.patch_size, device=device.where)
    reference = torch.randint(len(plan.labels), (batch, 1, *plan.patch_size), device=device.where)
    seconds = []
    for _ in range(1 + TIMED_STEPS):
        begin = time.perf_counter()
        with device.precision():
            logits = network(image)
        measure(logits, reference).backward()
        optimizer.step()
        optimizer.zero_grad()
        device.wait()
        seconds.append(time.perf_counter() - begin)
    return min(seconds[1:]) / batch


def probe_batch(plan: Plan) -> int:
    return min(plan.batch_size, max(2, ceil(MIN_CPU_VOXELS / prod(plan.patch_size))))


if __name__ == "__main__":
    errors.run(main)
