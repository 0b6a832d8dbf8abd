"""How well training uses one GPU: one script for two machines, the second of which may have no network.

Where the scans are, `python -m tests.bench.gpu --cohort DIR --archive gpu.tar.xz` preprocesses and packs them. Where the
GPU is, `python -m tests.bench.gpu --archive gpu.tar.xz --seconds 480` plans anew for that device, trains fold 0, times
inference and prints a table. The second needs torch, numpy, scipy, pyyaml, psutil, tensorboard, tqdm, typer, and as small
wheels where they are missing monai, nibabel, jsonschema, jsonschema-specifications, referencing and rpds-py; no SimpleITK
or Snakemake.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

from pipeline import disk, errors, records
from pipeline.errors import PipelineError
from pipeline.paths import Results
from tests.bench.inference_once import EDGE, PATCH
from tests.bench.ours import CONFIGURATION, ROOT, Ours

FILES = Results("gpu")
FOLD, NUM_FOLDS = 0, 5
GOAL = 0.89  # validation DSC
NUM_LABELS = 64  # of the network that is timed in inference
START_S = 120  # allowed on top of the training for imports, compilation, the model file and inference
SETTINGS = "settings.json"


def main(
    archive: str = ".bench/gpu.tar.xz",
    cohort: str = "",
    seconds: float = 480,
    device: str = "cuda",
    threads: int = os.cpu_count() or 1,
    memory_gib: float = 8,
) -> None:
    """With `cohort`, pack; without, train for `seconds` in all, planning and start included."""
    if cohort:
        pack(Path(cohort), Path(archive), threads)
    else:
        print(measure(Path(archive), seconds, device, threads, memory_gib))


def pack(cohort: Path, archive: Path, threads: int) -> None:
    """Preprocess all folds here and put what training reads, with its settings, into one file."""
    config = {"name": FILES.name, "cohort": str(cohort.resolve()), "configurations": [CONFIGURATION]}
    ours = Ours((archive.parent / "ours").resolve(), {**config, "folds": NUM_FOLDS, "threads": threads})
    ours.snakemake(*(FILES.preprocessed(CONFIGURATION, fold) for fold in range(NUM_FOLDS)), threads=threads)
    settings = {"plan": json.loads(ours.plan_settings), "train": ours.train_settings}
    records.write_json(ours.folder / FILES.root / SETTINGS, settings)
    parts = [FILES.checked_cases, FILES.cohort, FILES.fingerprint, FILES.root / "plan", FILES.root / SETTINGS]
    with disk.written_whole(archive) as partial, tarfile.open(partial, "w:xz", preset=1) as tar:
        for part in [*parts, FILES.root / "preprocess" / CONFIGURATION]:
            tar.add(ours.folder / part, str(part))
    print(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB")


def measure(archive: Path, seconds: float, device: str, threads: int, memory_gib: float) -> str:
    """A Markdown table of one training."""
    begin = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="gpu-bench-"))
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    settings = records.read_json(folder / FILES.root / SETTINGS)
    shared = ("--results", FILES.name, "--configuration", CONFIGURATION, "--device", device, "--threads", threads)
    wanted = ("--settings", json.dumps(settings["plan"]), "--memory-gib", memory_gib)
    run_module("pipeline.plan", *shared, *wanted, folder=folder, limit_s=seconds)
    left_s = seconds - (time.monotonic() - begin) - START_S
    if left_s <= 0:
        raise PipelineError(f"{seconds:g} s given, {seconds - left_s:.0f} s needed before any training. Give more.")
    train = {**settings["train"], "minutes": left_s / 60}
    sampler = watch_gpu(folder / "gpu.csv") if device == "cuda" else None
    try:
        more = ("--fold", FOLD, "--seed", 0, "--settings", json.dumps(train))
        run_module("pipeline.train", *shared, *more, folder=folder, limit_s=left_s + START_S)
    finally:
        if sampler:
            sampler.terminate()
            sampler.wait()
    rows = [*describe(folder), time_inference(device, threads, folder)]
    shutil.rmtree(folder)
    return "\n".join(["| measure | figure |", "|---|---|", *(f"| {name} | {figure} |" for name, figure in rows)])


def time_inference(device: str, threads: int, folder: Path) -> tuple[str, str]:
    """A row of the table: a random volume of `inference.py` to its label map."""
    options = ("--system", "ours", "--labels", NUM_LABELS, "--device", device, "--threads", threads)
    out = run_module("tests.bench.inference_once", *options, folder=folder, limit_s=START_S)
    found = json.loads(out.splitlines()[-1])
    return f"inference, {EDGE}^3, {NUM_LABELS} labels", f"{found['seconds']:.2f} s, patch {PATCH}^3, overlap 0.5"


def run_module(name: str, *options: object, folder: Path, limit_s: float) -> str:
    """Run a stage by hand, or a benchmark; what it prints goes on to the screen and is returned."""
    command = [sys.executable, "-m", name, *map(str, options)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, cwd=folder, env=environment, timeout=limit_s, **streams)
    print(done.stdout, flush=True)
    if done.returncode:
        raise PipelineError(f"{name}: failed with {done.returncode}; see above.")
    out: str = done.stdout
    return out


def watch_gpu(path: Path) -> subprocess.Popen:
    """Utilisation (percent of the time in which a kernel ran) and memory in use (MiB), twice a second, to a file."""
    query = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "-lms", "500")
    with path.open("w") as handle:
        return subprocess.Popen(query, stdout=handle)


def describe(folder: Path) -> list[tuple[str, str]]:
    """Rows of the table, from the files of the training."""
    facts = records.read_facts(folder / FILES.training_facts(CONFIGURATION, FOLD))
    progress = records.read_table(folder / FILES.progress(CONFIGURATION, FOLD))
    dsc = [float(row["validation_dsc"] or 0) for row in progress]
    minutes = [float(row["elapsed_s"]) / 60 for row in progress]
    reached = [when for when, value in zip(minutes, dsc, strict=True) if value >= GOAL]
    rows = [
        ("device", facts.device),
        ("budget", facts.reason),
        (f"validation DSC {GOAL}", f"after {reached[0]:.2f} min" if reached else f"not reached, best {max(dsc):.3f}"),
        ("validation DSC at the end", f"{dsc[-1]:.3f} after {minutes[-1]:.2f} min"),
        ("samples per second", f"{facts.samples_per_second:.1f}, validation included"),
        ("steps", f"{facts.steps} of {facts.batch_size}, width {facts.width}"),
    ]
    if not math.isnan(facts.data_share):
        rows.append(("share of the time that waits for data", f"{facts.data_share:.1%}, augmentation included"))
    if (path := folder / "gpu.csv").exists():
        samples = [tuple(map(float, line.split(","))) for line in path.read_text().splitlines() if line.count(",") == 1]
        busy = samples[len(samples) // 5 :]  # the first fifth holds imports and compilation
        rows.append(("GPU utilisation", f"{mean(percent for percent, _ in busy):.0f} % after the first fifth"))
        rows.append(("GPU memory", f"{max(memory for _, memory in samples) / 1024:.1f} GiB at most"))
    return rows


if __name__ == "__main__":
    errors.run(main)
