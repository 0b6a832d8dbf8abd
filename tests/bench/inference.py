"""Inference beside the peers: the same network over the same volume by us, MONAI and nnU-Net; seconds and peak memory.

`python -m tests.bench.inference`, with nothing else running. Each measurement is a process of its own, in turns.
"""

import json
import math
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import nibabel as nib
import numpy as np
import torch

from pipeline import errors
from pipeline.errors import PlanError
from pipeline.plan import measure_step
from tests.bench.inference_once import (
    EDGE,
    LARGE_LABELS,
    LARGE_SPACING_MM,
    LARGE_STAGES,
    LARGE_WIDTH,
    PATCH,
    STAGES,
    WIDTH,
    make_plan,
)
from tests.bench.ours import machine, record, run
from tests.bench.peer import INSIDE, PACKAGE, Peer, installed

NUM_LABELS = (3, 64)
LARGE_SHAPE, LARGE_VOXEL_MM, BLOCK = (512, 512, 600), (0.7, 0.7, 1.0), 8
Measure = Callable[[int], dict[str, Any]]


def main(
    folder: str = ".bench",
    rounds: int = 2,
    edge: int = EDGE,
    threads: int = os.cpu_count() or 1,
    skip_large: bool = False,
    only_large: bool = False,
) -> None:
    """Every system in turn, `rounds` times; medians."""
    form, note = fastest_form(threads), f"{machine(threads)}, torch {torch.__version__}"
    if not only_large:
        compare(systems(installed(Path(folder), threads), form, edge), rounds, edge, note)
    if not skip_large:
        record([large(form, threads, note)])


def systems(peer: Peer, form: str, edge: int) -> dict[str, Measure]:
    """By name what measures each for a number of labels."""
    shared = ("--edge", edge, "--threads", peer.threads)

    def ours(*options: object) -> Measure:
        return lambda labels: once("ours", "--labels", labels, "--form", form, *shared, *options)

    def network(*options: object) -> Measure:
        return lambda labels: once("network", "--labels", labels, "--form", form, *shared, *options)

    return {
        "Segsnake": ours(),
        "Segsnake, compiled": ours("--compiled"),
        "MONAI sliding_window_inference": lambda labels: once("monai", "--labels", labels, *shared),
        PACKAGE: lambda labels: infer_inside(peer, labels, edge),
        "the network alone": network(),
        "the network alone, compiled": network("--compiled"),
        "Segsnake, overlap 0.25": ours("--overlap", 0.25),
        "Segsnake, one window": ours("--window", edge, "--overlap", 0),
    }


def compare(measures: dict[str, Measure], rounds: int, edge: int, note: str) -> None:
    for labels in NUM_LABELS:
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in measures}
        for _ in range(rounds):
            for name, measure in measures.items():
                found[name].append(measure(labels))
                print(f"{labels} labels, {name}: {found[name][-1]}", flush=True)
        middle = {
            name: {key: median(one[key] for one in of_system) for key in of_system[0]}
            for name, of_system in found.items()
        }
        first = middle[next(iter(measures))]["seconds"]
        sizes = f"{edge}^3, U-Net {WIDTH} to {WIDTH * 2 ** (STAGES - 1)}, patch {PATCH}^3, Gaussian, overlap 0.5 unless said"
        record(
            [
                (
                    f"inference, {labels} labels",
                    name,
                    f"{one['seconds']:.1f} s, +{one['mib']:.0f} MiB; {first / one['seconds']:.2f} times as fast as the first",
                    f"{one['without_argmax_s']:.1f} s without argmax; {rounds} rounds; {sizes}, {note}",
                )
                for name, one in middle.items()
            ]
        )


def fastest_form(threads: int) -> str:
    """Precision and layout, as `plan` finds them."""
    plan = make_plan(NUM_LABELS[0])
    measured = measure_step(plan, widths=[WIDTH], memory_gib=math.inf, device="cpu", threads=threads)
    if measured is None:
        raise PlanError("inference: not enough memory to try the network. Close other programs.")
    print(f"form: {measured.forms[WIDTH]}", flush=True)
    return measured.forms[WIDTH]


def once(system: str, *options: object) -> dict[str, Any]:
    return last_line(run(sys.executable, "-m", "tests.bench.inference_once", "--system", system, *options))


def infer_inside(peer: Peer, labels: int, edge: int) -> dict[str, Any]:
    sizes = ("--edge", edge, "--patch", PATCH, "--width", WIDTH, "--stages", STAGES)
    options = (*sizes, "--labels", labels, "--threads", peer.threads)
    return last_line(peer.run(peer.python, INSIDE, "infer", *map(str, options)))


def last_line(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    return found


def large(form: str, threads: int, note: str) -> tuple[str, str, str, str]:
    """A scan of the size of the largest that hospitals make, to its mask on disk."""
    with tempfile.TemporaryDirectory(prefix="inference-bench-") as folder:
        scan = Path(folder) / "large.nii"
        write_scan(scan)
        found = once("large", "--scan", scan, "--form", form, "--threads", threads)
    size = f"{'x'.join(map(str, LARGE_SHAPE))} voxels of {'x'.join(map(str, LARGE_VOXEL_MM))} mm, {LARGE_LABELS} labels"
    network = f"U-Net {LARGE_WIDTH} to {LARGE_WIDTH * 2 ** (LARGE_STAGES - 1)} at {LARGE_SPACING_MM} mm"
    return (
        "segment, large scan",
        "Segsnake",
        f"{found['seconds']:.0f} s, {found['mib'] / 1024:.2f} GiB in all",
        f"{size}, {network}, patch {PATCH}^3, overlap 0.5, checked, mask on the scan's grid; {note}",
    )


def write_scan(path: Path) -> None:
    """Blocks of random grey."""
    coarse = np.random.default_rng(0).integers(0, 1000, [size // BLOCK for size in LARGE_SHAPE], dtype=np.int16)
    voxels = coarse.repeat(BLOCK, 0).repeat(BLOCK, 1).repeat(BLOCK, 2)
    assert voxels.shape == LARGE_SHAPE
    image = nib.Nifti1Image(voxels, np.diag((*LARGE_VOXEL_MM, 1.0)))
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


if __name__ == "__main__":
    errors.run(main)
