"""Accuracy beside the peer: the same fold, the same minutes of training, both sets of masks scored by our measures.

`python -m tests.bench.accuracy --cohort path/to/Task04_Hippocampus --system ours`, then `--system nnunet`, with nothing
else running on the machine. What is done already (preprocessing, a finished training, masks) is not done again.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import errors, records
from pipeline.errors import ConfigError
from pipeline.images import read_labels_ras
from pipeline.metrics import dsc
from pipeline.records import Case
from tests.bench.ours import CONFIGURATION, Ours, machine, record
from tests.bench.peer import DATASET, INSIDE, NUM_FOLDS, PACKAGE, SEED, folds_of, prepare

FOLD = 0
SYSTEMS = {"ours": ("ours",), "nnunet": ("nnunet",), "both": ("ours", "nnunet")}


def main(
    cohort: str,
    minutes: float = 30,
    system: str = "both",
    folder: str = ".bench",
    device: str = "cpu",
    threads: int = os.cpu_count() or 1,
    workers: int = 1,
    peer_batch: int = 0,
) -> None:
    """`workers` of the peer's dataloader: the best that `training.py` found. `peer_batch`: 0 is the one it plans."""
    if system not in SYSTEMS:
        raise ConfigError(f"--system is {system!r}: one of {', '.join(SYSTEMS)} expected.")
    description, cases = folds_of(Path(cohort))
    held_out = [case for case, fold in cases if fold == FOLD]
    place = machine(threads) if device == "cpu" else device
    for name in SYSTEMS[system]:
        if name == "ours":
            title, masks, samples = run_ours(Path(cohort), Path(folder), minutes, device, threads)
        else:
            title, masks, samples = run_peer(Path(cohort), Path(folder), minutes, device, threads, workers, peer_batch)
        figure = score(held_out, masks, description.foreground)
        setting = f"{samples}; {len(held_out)} cases of fold {FOLD}, {place}"
        record([(f"accuracy, {minutes:g} min", title, figure, setting)])


def run_ours(cohort: Path, folder: Path, minutes: float, device: str, threads: int) -> tuple[str, Path, str]:
    """Title, folder of masks, and what the network saw."""
    config = {
        "name": f"accuracy_{minutes:g}",
        "cohort": str(cohort.resolve()),
        "configurations": [CONFIGURATION],
        "run_folds": [FOLD],
        "train": {"minutes": minutes},
        **{"folds": NUM_FOLDS, "seed": SEED, "threads": threads, "device": device},
    }
    ours = Ours((folder / "ours").resolve(), config)
    ours.snakemake(threads=threads)
    facts = records.read_facts(ours.folder / ours.files.training_facts(CONFIGURATION, FOLD))
    samples = describe(facts.steps, facts.batch_size, facts.elapsed_s) + f", width {facts.width}"
    return "Segsnake", ours.folder / ours.files.mask(CONFIGURATION, "case").parent, samples


def run_peer(
    cohort: Path, folder: Path, minutes: float, device: str, threads: int, workers: int, batch: int
) -> tuple[str, Path, str]:
    """Title, folder of masks, and what the network saw."""
    peer = prepare(cohort, folder, threads)
    run = f"accuracy_{minutes:g}" + (f"_batch_{batch}" if batch else "")
    trained, masks = peer.results(run) / "trained.json", peer.results(run) / "masks"
    shared = [*("--dataset", DATASET, "--configuration", CONFIGURATION, "--fold", FOLD)]
    shared += [*("--threads", threads, "--device", device, "--batch-size", batch)]

    def inside(*job: object) -> dict[str, Any]:
        out = peer.run(peer.python, INSIDE, *map(str, (*job, *shared)), results=run, workers=workers)
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
        return found

    if not trained.exists():
        records.write_json(trained, inside("train", "--minutes", minutes))
    if not (masks / "done").exists():
        inside("predict", "--masks", masks)
        (masks / "done").touch()
    found = records.read_json(trained)
    samples = describe(found["steps"], found["batch_size"], found["seconds"]) + f", {workers} workers"
    return PACKAGE, masks, samples


def describe(steps: int, batch: int, seconds: float) -> str:
    return f"{steps * batch} samples, {steps} steps of {batch} in {seconds / 60:.1f} min"


def score(cases: list[Case], masks: Path, labels: dict[int, str]) -> str:
    """Mean DSC per label over the cases in which it is in either mask, and the mean of these."""
    table = []
    for case in cases:
        assert case.label is not None
        reference, grid = read_labels_ras(case.label)
        prediction, own_grid = read_labels_ras(masks / f"{case.case}.nii.gz")
        assert grid.distance_mm(own_grid) < 0.01 * min(grid.spacing_mm), case.case
        table.append(dsc(reference, prediction, labels=list(labels)))
    means = np.nanmean(np.array(table, dtype=float), axis=0)
    parts = ", ".join(f"{name} {mean:.3f}" for name, mean in zip(labels.values(), means, strict=True))
    return f"mean DSC {means.mean():.3f} ({parts})"


if __name__ == "__main__":
    errors.run(main)
