"""One measurement of inference in a process of its own: a JSON object with seconds and MiB on the last line.

`ours` and `monai` take a random volume through the same random network to the label map on the same grid, `network` is what
the network's own calls take of it; `large` takes a scan on disk through `segment` to its mask on disk.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import errors
from pipeline.config import complete, settings_of
from pipeline.intensity import describe
from pipeline.nn.checkpoints import Model, save_model
from pipeline.nn.device import Device, pick_device
from pipeline.nn.networks import build_network
from pipeline.paths import Results
from pipeline.plan import Plan, Width, plan_configuration
from pipeline.records import Cohort, write_cohort, write_json
from pipeline.windows import Setting, Window, num_at_once, window_starts
from tests.bench import memory
from tests.bench.ours import CONFIGURATION

EDGE, PATCH = 160, 64  # voxels
WIDTH, STAGES = 16, 4
LARGE_LABELS, LARGE_SPACING_MM, LARGE_WIDTH, LARGE_STAGES = 118, 1.5, 4, 3
Measured = dict[str, Any]


def main(
    system: str,
    labels: int = 3,
    window: int = PATCH,
    overlap: float = 0.5,
    edge: int = EDGE,
    form: str = "",
    device: str = "cpu",
    threads: int = os.cpu_count() or 1,
    scan: str = "",
    compiled: bool = False,
) -> None:
    """`labels`: with background. `form`: empty for what is usually fastest. `scan`: of `large`, in an empty folder."""
    torch.set_num_threads(threads)
    processor = pick_device(device)
    measure: dict[str, Callable[[], Measured]] = {
        "ours": lambda: ours(make_plan(labels, form=form), window, overlap, edge, processor, is_compiled=compiled),
        "network": lambda: network(make_plan(labels, form=form), overlap, edge, processor, is_compiled=compiled),
        "monai": lambda: monai(make_plan(labels), overlap, edge, processor),
        "large": lambda: large(Path(scan), form, device, threads),
    }
    print(json.dumps(measure[system]()))


def make_plan(
    num_labels: int, *, width: int = WIDTH, stages: int = STAGES, spacing_mm: float = 1.0, form: str = ""
) -> Plan:
    """A cube of a patch, kernels of 3 and strides of 2; the network computes in `form`."""
    own = {"features": width, "stages": stages, "patch_size": [PATCH] * 3, "spacing_mm": [spacing_mm] * 3}
    config = complete({"name": "inference", "cohort": "none", "configurations": {CONFIGURATION: own}})
    wanted = settings_of(config, CONFIGURATION)
    plan = plan_configuration(
        make_fingerprint(num_labels), make_cohort(num_labels), CONFIGURATION, wanted, memory_gib=8
    )
    return replace(plan, widths=(Width(width, 0.0, form, "cpu"),)) if form else plan


def make_cohort(num_labels: int) -> Cohort:
    return Cohort("inference", "none", {value: f"label {value}" for value in range(num_labels)}, {0: "MRI"})


def make_fingerprint(num_labels: int) -> dict[str, Any]:
    intensity = asdict(describe(np.empty(0)))
    names = [label.name for label in make_cohort(num_labels).targets]
    case = {"spacing_mm": [1.0] * 3, "shape": [EDGE] * 3, "shape_nonzero": [EDGE] * 3, "orientation": "RAS"}
    return {
        "num_cases": 1,
        "median_fraction_nonzero": 1.0,
        "target_rms": None,
        "channels": [{"channel": "MRI", **intensity}],
        "cases": [{"case": "a", **case, "intensity": [intensity], "volumes_ml": dict.fromkeys(names, 1.0)}],
    }


def ours(plan: Plan, size: int, overlap: float, edge: int, device: Device, *, is_compiled: bool) -> Measured:
    """Slab by slab, each to its labels as soon as it is there; without what compiling takes."""
    from pipeline.nn.sliding import predict_slabs

    torch.manual_seed(0)
    model = Model(build_network(plan, WIDTH).to(device.where).eval(), plan, WIDTH)
    image = torch.randn(1, edge, edge, edge).numpy()
    window = Window((size,) * 3, overlap, is_compiled=is_compiled)
    if device.where.type == "cuda" or is_compiled:  # kernels are chosen, or made, in the first call
        for _ in predict_slabs([model], image[:, :size], device, window):
            pass
    base, begin, argmax_s = memory.start(), time.perf_counter(), 0.0
    label_map = np.empty(image.shape[1:], np.uint8)
    start = 0
    for slab in predict_slabs([model], image, device, window):
        at = time.perf_counter()
        stop = start + slab.shape[1]
        label_map[start:stop] = torch.from_numpy(slab).argmax(0).numpy()
        start = stop
        argmax_s += time.perf_counter() - at
    assert start == edge, start
    return measured(begin, argmax_s, base)


def network(plan: Plan, overlap: float, edge: int, device: Device, *, is_compiled: bool) -> Measured:
    """The calls that `ours` makes, of the network only: what no way of adding windows up can save."""
    from pipeline.nn.sliding import caller

    torch.manual_seed(0)
    window = Window((PATCH,) * 3, overlap, is_compiled=is_compiled)
    call = caller(Model(build_network(plan, WIDTH).to(device.where).eval(), plan, WIDTH), device, window)
    at_once = num_at_once(window.size, device.where.type)
    num_windows = len(window_starts(edge, PATCH, overlap)) ** 3
    windows = torch.randn(at_once, 1, *window.size, device=device.where).unbind()
    with torch.inference_mode():
        call(windows)
        base, begin = memory.start(), time.perf_counter()
        for _ in range(num_windows // at_once):
            call(windows)
    return measured(begin, 0, base)


def monai(plan: Plan, overlap: float, edge: int, device: Device) -> Measured:
    from monai.inferers import sliding_window_inference

    torch.manual_seed(0)
    network = build_network(plan, WIDTH).to(device.where).eval()
    image = torch.randn(1, 1, edge, edge, edge)
    base, begin = memory.start(), time.perf_counter()
    with torch.inference_mode():
        logits = sliding_window_inference(image, (PATCH,) * 3, 1, network, overlap=overlap, mode="gaussian")
        at = time.perf_counter()
        label_map = logits[0].argmax(0).to(torch.uint8)
    assert label_map.shape == image.shape[2:]
    return measured(begin, time.perf_counter() - at, base)


def measured(begin: float, argmax_s: float, base_mib: float) -> Measured:
    """Seconds in all and without the last step, and MiB above what the process had before."""
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "without_argmax_s": seconds - argmax_s, "mib": memory.peak() - base_mib}


def large(scan: Path, form: str, device: str, threads: int) -> Measured:
    """All that a user of `segment` waits for, and all the memory of the process, imports included."""
    from pipeline import segment

    os.chdir(scan.parent)
    files = Results("large")
    sizes = {"width": LARGE_WIDTH, "stages": LARGE_STAGES, "spacing_mm": LARGE_SPACING_MM}
    plan = make_plan(LARGE_LABELS, form=form, **sizes)
    torch.manual_seed(0)
    save_model(files.model(CONFIGURATION, 0), build_network(plan, LARGE_WIDTH).state_dict(), LARGE_WIDTH, plan)
    write_cohort(files.cohort, make_cohort(LARGE_LABELS))
    write_json(files.fingerprint, make_fingerprint(LARGE_LABELS))
    write_json(files.choice, {"for_new_scans": [CONFIGURATION]})
    write_json(files.inference(CONFIGURATION), asdict(Setting(window=1, overlap=0.5, mirror=False)))
    settings = {"train_mirror": [], "memory_gib": 2, "uncertainty": False, "asked": {}}
    begin = time.perf_counter()
    segment.main("large", str(scan), "0", json.dumps(settings), device=device, threads=threads)
    seconds = time.perf_counter() - begin
    assert len(list(files.segment.glob("*.nii.gz"))) == 1
    return {"seconds": seconds, "mib": memory.peak()}


if __name__ == "__main__":
    errors.run(main)
