"""Every network on the demo's phantoms for the same minutes, narrow as a short budget on a CPU has them; a Markdown table.

`python -m tests.bench.networks --minutes 0.3`, with nothing else running. Trains on two folds of three and scores the
third on its preprocessed grid. It ranks how fast the networks learn, not how good they get: for that, give hours.
"""

import os
import shutil
import tempfile
import time
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from pipeline import errors, records
from pipeline.architectures import ARCHITECTURES, candidate_widths
from pipeline.config import complete, settings_of
from pipeline.metrics import dsc
from pipeline.nn.checkpoints import Model
from pipeline.nn.device import Device, pick_device
from pipeline.nn.forms import seconds_per_step, usual_form
from pipeline.nn.networks import build_network
from pipeline.nn.patches import PatchSource, open_sources
from pipeline.plan import Plan, Width, plan_configuration
from pipeline.train import train
from tests.bench.ours import Ours, machine
from tests.dense import predict_densely

FOLD, NUM_FOLDS = 0, 3
PREPROCESSED = {2: "2d", 3: "3d_fullres"}  # arrays are the same for all networks of as many dimensions
MEMORY_GIB = 8.0
OVERLAP = 0.25


def main(
    minutes: float = 0.3,
    networks: str = ",".join(ARCHITECTURES),
    device: str = "cpu",
    threads: int = os.cpu_count() or 1,
) -> None:
    begin = time.monotonic()
    torch.set_num_threads(threads)
    processor, folder = pick_device(device), Path(tempfile.mkdtemp(prefix="networks-bench-"))
    narrow = {name: {"dims": dims, "features": 4, "batch_size": 2} for dims, name in PREPROCESSED.items()}
    config: dict[str, Any] = {"name": "networks", "cohort": "demo", "folds": NUM_FOLDS, "configurations": narrow}
    ours = Ours(folder, {**config, "threads": threads, "device": device})
    shards = [ours.files.preprocessed(name, fold) for name in narrow for fold in range(NUM_FOLDS)]
    ours.snakemake(*shards, threads=threads)
    lines = []
    with chdir(folder):
        for network in networks.split(","):
            cells = [learn(ours, network, dims, minutes, processor) for dims in PREPROCESSED]
            lines.append(f"| `{network}` | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    shutil.rmtree(folder)
    print(f"\n{minutes:g} minutes each, {machine(threads)}, {(time.monotonic() - begin) / 60:.0f} minutes in all\n")
    print("\n".join(["| network | DSC 2D, patches seen | DSC 3D, patches seen |", "|---|---|---|", *lines]))


def learn(ours: Ours, network: str, dims: int, minutes: float, device: Device) -> str:
    """The mean DSC of labels and held-out cases, with width and patches seen."""
    config = {
        **ours.config,
        "configurations": {network: {"dims": dims, "network": network}},
        "train": {"minutes": minutes},
    }
    full = complete(config)
    wanted = settings_of(full, network)
    fingerprint, cohort = records.read_json(ours.files.fingerprint), records.read_cohort(ours.files.cohort)
    plan = plan_configuration(fingerprint, cohort, network, wanted, MEMORY_GIB)
    width = candidate_widths(wanted)[0]
    seconds = seconds_per_step(usual_form(device, dims), plan, width, 2, device) / 2
    plan = replace(plan, widths=(Width(width, seconds),))
    training, held_out = (sources(ours, PREPROCESSED[dims], is_held_out, device) for is_held_out in (False, True))
    folder = ours.files.training(f"{network}_{dims}d", FOLD)
    weights, width = train(plan, full["train"], device, training=training, validation=[], seed=(0, FOLD), folder=folder)
    built = build_network(plan, width).to(device.where)
    built.load_state_dict(weights)
    model = Model(built.eval(), plan, width)
    scores = [score for source in held_out for score in scores_of(model, plan, source, device) if score is not None]
    seen = records.read_json(folder / "training.json")
    return f"{np.mean(scores):.3f}, {seen['steps'] * seen['batch_size']} of {'x'.join(map(str, seen['patch_size']))}"


def sources(ours: Ours, configuration: str, is_held_out: bool, device: Device) -> list[PatchSource]:
    cases = [case for case in records.read_cases(ours.files.checked_cases) if (case.fold == FOLD) == is_held_out]
    folders = [ours.files.arrays(configuration, case.case) for case in cases]
    return open_sources(folders, psutil.virtual_memory().available, device.where, device.free_bytes)


def scores_of(model: Model, plan: Plan, source: PatchSource, device: Device) -> list[float | None]:
    """Of each label on the preprocessed grid."""
    probabilities = predict_densely([model], source.image.numpy(), device, overlap=OVERLAP)
    found = probabilities.argmax(axis=0).astype(np.int32)
    return dsc(source.classes.numpy().astype(np.int32), found, labels=range(1, len(plan.labels)))


if __name__ == "__main__":
    errors.run(main)
