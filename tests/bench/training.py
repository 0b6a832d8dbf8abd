"""Training speed beside the peer: the same network, patch and batch, in turns on one machine; and the bare network.

`python -m tests.bench.training --cohort path/to/Task04_Hippocampus`; needs nothing else running on the machine.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from monai.networks.nets import DynUNet

from pipeline import errors, records
from tests.bench.ours import CONFIGURATION, Ours, machine, record
from tests.bench.peer import DATASET, INSIDE, NUM_FOLDS, PACKAGE, Peer, prepare

WORKERS = (0, 1, 2)  # of the peer's dataloader; its best is taken
WARM_UP = 2
NO_FOLD = NUM_FOLDS  # a fold of no case: trains on all and never stops to validate
PATCH = (40, 56, 40)  # the peer's plan for hippocampus, and ours
FEATURES = (32, 64, 128, 256)


def main(
    cohort: str,
    folder: str = ".bench",
    batch_size: int = 9,
    steps: int = 10,
    rounds: int = 2,
    threads: int = os.cpu_count() or 1,
    network_only: bool = False,
    compiled: bool = False,
) -> None:
    """Two `rounds` of `steps` timed steps for each system, after two to warm up; `compiled`: ours, whatever it chooses."""
    setting = f"batch {batch_size}, patch {'x'.join(map(str, PATCH))}, {machine(threads)}, torch {torch.__version__}"
    if not network_only:
        rows = compare(Path(cohort), Path(folder), batch_size, steps, rounds, threads, compiled)
        record([("training", system, figure, f"{note}; {setting}") for system, figure, note in rows])
    torch.set_num_threads(threads)
    record([("bare network", name, figure, setting) for name, figure in time_network(batch_size, max(3, steps // 2))])


def compare(
    cohort: Path, folder: Path, batch_size: int, steps: int, rounds: int, threads: int, is_compiled: bool
) -> list[tuple[str, str, str]]:
    """System, figure and note of each row."""
    peer, ours = prepare(cohort, folder, threads), prepare_ours(cohort, folder, batch_size, threads, is_compiled)
    trial = {count: peer_steps(peer, batch_size, max(3, steps // 2), count)["seconds"] for count in WORKERS}
    best = min(WORKERS, key=lambda count: median(trial[count]))
    tried = ", ".join(f"{count}: {median(seconds) / batch_size:.3f} s" for count, seconds in trial.items())
    print(f"peer, seconds per sample by workers: {tried}", flush=True)
    theirs: list[float] = []
    waits: list[float] = []
    own: list[float] = []
    form = ""
    for _ in range(rounds):
        found = peer_steps(peer, batch_size, steps, best)
        theirs += found["seconds"]
        waits += found["waits"]
        seconds, form = own_steps(ours, steps, threads)
        own += seconds
    slow, fast = median(theirs) / batch_size, median(own) / batch_size
    rows = [
        (
            PACKAGE,
            f"{slow:.3f} s per sample",
            f"fp32 as is, {best} workers (by workers {tried}), {sum(waits) / sum(theirs):.0%} of a step waits for data",
        ),
        (
            "Segsnake",
            f"{fast:.3f} s per sample, {slow / fast:.2f} times as fast",
            f"{form}; {len(own)} steps",
        ),
    ]
    if (path := ours.folder / ours.files.training_facts(CONFIGURATION, NO_FOLD)).exists():
        share = records.read_facts(path).data_share
        rows.append(("Segsnake", f"{share:.1%} of the time waits for data", "augmentation included, all steps"))
    return rows


def prepare_ours(cohort: Path, folder: Path, batch_size: int, threads: int, is_compiled: bool) -> Ours:
    """The cohort, planned with the peer's network and preprocessed by us."""
    configuration = {"features": FEATURES[0], "batch_size": batch_size, "patch_size": list(PATCH)}
    name = f"training_{batch_size}"
    config = {"name": name, "cohort": str(cohort.resolve()), "threads": threads, "folds": NUM_FOLDS}
    config |= {"configurations": {CONFIGURATION: configuration}, "train": {"compile": True if is_compiled else "auto"}}
    ours = Ours((folder / "ours").resolve(), config)
    ours.snakemake(*(ours.files.preprocessed(CONFIGURATION, fold) for fold in range(NUM_FOLDS)), threads=threads)
    return ours


def peer_steps(peer: Peer, batch_size: int, steps: int, workers: int) -> dict[str, Any]:
    options = [*("--dataset", DATASET, "--configuration", CONFIGURATION, "--batch-size", batch_size)]
    options += [*("--steps", steps, "--warm-up", WARM_UP, "--threads", peer.threads)]
    out = peer.run(peer.python, INSIDE, "speed", *map(str, options), results="speed", workers=workers)
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert tuple(found["patch_size"]) == PATCH, found
    return found


def own_steps(ours: Ours, steps: int, threads: int) -> tuple[list[float], str]:
    """Seconds per step after the warm-up, checkpoints included, by the lines of progress.tsv; and the form that was taken."""
    log = ours.train(fold=NO_FOLD, iterations=WARM_UP + steps, threads=threads, device="cpu")
    lines = [line for line in ours.progress(NO_FOLD) if line[0] >= WARM_UP]
    seconds = [(late - early) / (last - first) for (first, early), (last, late) in pairwise(lines)]
    return seconds, ", ".join(re.findall(r"^form: (.*)", log, re.MULTILINE))


def time_network(batch_size: int, steps: int) -> Iterator[tuple[str, str]]:
    """Forward and backward of the network alone: median seconds per sample, by precision and layout."""
    plain, last = torch.contiguous_format, torch.channels_last_3d
    variants: list[tuple[str, torch.dtype | None, torch.memory_format, bool]]
    variants = [("fp32", None, plain, False), ("fp32 channels-last", None, last, False)]
    variants += [("bf16", torch.bfloat16, plain, False), ("bf16 channels-last", torch.bfloat16, last, False)]
    if shutil.which("c++") or shutil.which("g++"):
        variants += [("bf16 compiled", torch.bfloat16, plain, True)]
        variants += [("bf16 channels-last compiled", torch.bfloat16, last, True)]
    for name, precision, layout, is_compiled in variants:
        network = build(layout).train()
        run = torch.compile(network) if is_compiled else network
        image = torch.randn(batch_size, 1, *PATCH).to(memory_format=layout)
        seconds = []
        for _ in range(WARM_UP + steps):
            begin = time.perf_counter()
            with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
                logits = run(image)
            logits.float().square().mean().backward()
            network.zero_grad()
            seconds.append(time.perf_counter() - begin)
        yield (
            f"DynUNet {FEATURES[0]}..{FEATURES[-1]} {name}",
            f"{median(seconds[WARM_UP:]) / batch_size:.3f} s per sample",
        )


def build(layout: torch.memory_format) -> torch.nn.Module:
    network = DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=3,
        kernel_size=[3] * len(FEATURES),
        strides=[1, *[2] * (len(FEATURES) - 1)],
        upsample_kernel_size=[2] * (len(FEATURES) - 1),
        filters=FEATURES,
        norm_name=("INSTANCE", {"affine": True}),
    )
    return network.to(memory_format=layout)


if __name__ == "__main__":
    errors.run(main)
