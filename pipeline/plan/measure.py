"""What a training step of a plan takes on this machine, and the plan with what was measured.

Imports no torch: the network is tried in a process of its own, which may run out of memory.
"""

import json
import signal
import subprocess
import sys
from dataclasses import asdict, replace

from pipeline.errors import PlanError
from pipeline.fit import Measured
from pipeline.plan.record import Plan, Width, by


def measure_step(
    plan: Plan, *, widths: list[int], memory_gib: float, device: str, threads: int, is_deterministic: bool = False
) -> Measured | None:
    """Memory of a training step at the largest width and, if it is within `memory_gib`, the time at all widths.

    On a GPU, where the plan may still grow, nothing is timed unless `memory_gib` is infinite.
    Asks a process that may import torch, and may run out of memory: None.
    """
    command = [sys.executable, "-m", "pipeline.nn.probe", "--device", device, "--threads", str(threads)]
    command += ["--memory-gib", str(memory_gib), *(part for width in widths for part in ("--features", str(width)))]
    command += ["--deterministic"] * is_deterministic
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
