"""Weights on disk: checkpoints that a killed training continues from, and the models that predict.

Every file is written whole, and loaded as plain tensors and numbers only, so that a file from elsewhere cannot run code.
"""

import fcntl
import hashlib
import json
import os
import pickle
import socket
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from pipeline import disk, records
from pipeline.budget import Budget
from pipeline.errors import TrainingError
from pipeline.nn.networks import build_network
from pipeline.plan import Plan, plan_from_json


@dataclass(frozen=True)
class Model:
    network: torch.nn.Module
    plan: Plan
    width: int


def save_checkpoint(path: Path, key: str, state: dict[str, Any]) -> None:
    """The one that is there stays beside it, for the disk may damage either."""
    with disk.written_whole(path) as partial:
        _save({"key": key, **state}, partial)
        if path.exists():
            os.replace(path, previous_checkpoint(path))


def previous_checkpoint(path: Path) -> Path:
    return path.with_name(f"previous_{path.name}")


def load_checkpoint(path: Path, key: str) -> dict[str, Any] | None:
    """The state, of the checkpoint before it where it is damaged (said so); None without either, or of other settings."""
    for one in filter(Path.exists, (path, previous_checkpoint(path))):
        try:
            if damaged := zipfile.ZipFile(one).testzip():  # torch takes a flipped bit of a weight without a word
                raise RuntimeError(f"{damaged} is not as it was written")
            state: dict[str, Any] = torch.load(one, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError, OSError, zipfile.BadZipFile) as error:
            print(f"{one}: damaged ({error}), not used.", flush=True)
            continue
        if state["key"] == key:
            return state
        print(f"{one}: of other data or settings; training starts afresh.", flush=True)
        return None
    return None


def training_key(plan: Plan, budget: Budget, settings: dict[str, Any], seed: tuple[int, int], data: list[str]) -> str:
    """Two runs with the same key may continue each other: same sizes, settings and data, whatever was measured meanwhile.

    What scans are scaled by shows in the data.
    """
    asked = replace(plan, widths=(), reasons={}, memory_measured_gib=None, foreground_intensity=())
    sizes = (budget.width, budget.patch_size, budget.batch_size, budget.steps, budget.seconds)
    return hashlib.sha256(json.dumps([repr(asked), sizes, settings, seed, data], sort_keys=True).encode()).hexdigest()


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Nobody else trains in this folder meanwhile; the lock ends with the process, however that ends.

    It holds between machines if their file system carries locks, as NFS does; where there are none, that is said.

    Raises:
        TrainingError: another process, such as one that a killed workflow left behind, is training here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            raise TrainingError(
                f"{folder}: another process is training here: {handle.read() or 'unknown'}. Wait for it or end it."
            ) from error
        except OSError as error:
            print(f"{folder}: not locked ({error.strerror}): see to it that nobody else trains here.", flush=True)
        handle.truncate(0)
        handle.write(this_process())
        handle.flush()
        yield


def this_process() -> str:
    """For whoever wants to end it: `process 71 on node07, job 42 of SLURM (scancel 42), since 2026-01-31 08:00`."""
    job = os.environ.get("SLURM_JOB_ID")
    of_slurm = f", job {job} of SLURM (scancel {job})" if job else ""
    return f"process {os.getpid()} on {socket.gethostname()}{of_slurm}, since {datetime.now():%Y-%m-%d %H:%M}"


def save_model(path: Path, weights: dict[str, torch.Tensor], width: int, plan: Plan) -> None:
    """One file that predicts on its own: weights in fp32, the width and the plan they belong to."""
    checksum_file(path).unlink(missing_ok=True)  # a kill between the two files must not leave a checksum of the old one
    with disk.written_whole(path) as partial:
        _save({"weights": weights, "width": width, "plan": json.loads(json.dumps(asdict(plan)))}, partial)
    disk.write_text(checksum_file(path), f"{records.sha256(path)}  {path.name}\n")


def _save(content: dict[str, Any], path: Path) -> None:
    """Through a file of Python's, which says that a disk is full where torch's own does not."""
    with path.open("wb") as handle:
        torch.save(content, handle)


def checksum_file(path: Path) -> Path:
    """`model.pt.sha256`, which `sha256sum --check` reads."""
    return path.with_name(f"{path.name}.sha256")


def load_pretrained(network: torch.nn.Module, path: Path) -> str:
    """Fill the network with the weights of an earlier model wherever name and shape agree; says how many did.

    Raises:
        TrainingError: missing, damaged, or of another network: fewer than half of the weights fit.
    """
    if not path.exists():
        raise TrainingError(f"{path}: no such file found, a model.pt expected. Correct `train.pretrained`.")
    weights = read_model(path)["weights"]
    own = network.state_dict()
    fitting = {name: weights[name] for name in own if name in weights and weights[name].shape == own[name].shape}
    if 2 * len(fitting) < len(own):
        raise TrainingError(
            f"{path}: {len(fitting)} of {len(own)} weights fit. Use the same `network`, `features` and patch as the "
            "pretrained model, or leave `train.pretrained` out."
        )
    network.load_state_dict(fitting, strict=False)
    return f"pretrained: {len(fitting)} of {len(own)} weights from {path}; the others start at random"


def load_model(path: Path, device: torch.device) -> Model:
    """
    Raises:
        TrainingError: missing or damaged.
    """
    content = read_model(path)
    plan = plan_from_json(content["plan"])
    network = build_network(plan, content["width"])
    network.load_state_dict(content["weights"])
    return Model(network.to(device).eval(), plan, content["width"])


def read_model(path: Path) -> dict[str, Any]:
    """
    Raises:
        TrainingError: missing, damaged, or not the file whose checksum lies beside it.
    """
    if not path.exists():
        raise TrainingError(f"{path}: no trained model. Run `snakemake` for this configuration first.")
    checksum = checksum_file(path)
    if checksum.exists() and checksum.read_text().split()[0] != records.sha256(path):
        raise TrainingError(
            f"{path}: damaged (not the file that {checksum.name} describes). Delete it and train again."
        )
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise TrainingError(f"{path}: damaged ({error}). Delete it and train again.") from error
    return content
