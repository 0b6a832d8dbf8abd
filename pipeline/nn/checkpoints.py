"""Weights on disk: checkpoints that a killed training continues from, and the models that predict.

Every file is written whole, and loaded as plain tensors and numbers only, so that a file from elsewhere cannot run code.
"""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline import records
from pipeline.errors import TrainingError
from pipeline.nn.networks import build_network
from pipeline.plan import Plan, plan_from_json


@dataclass(frozen=True)
class Model:
    network: torch.nn.Module
    plan: Plan


def save_checkpoint(path: Path, key: str, state: dict[str, Any]) -> None:
    with records.written_whole(path) as partial:
        torch.save({"key": key, **state}, partial)


def load_checkpoint(path: Path, key: str) -> dict[str, Any] | None:
    """The state, or None when there is none, it is of other settings, or it is damaged (said so)."""
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
        print(f"{path}: damaged ({error}); training starts afresh.", flush=True)
        return None
    if state["key"] != key:
        print(f"{path}: of other data or settings; training starts afresh.", flush=True)
        return None
    return state


def save_model(path: Path, weights: dict[str, torch.Tensor], width: int, plan: Path) -> None:
    """One file that predicts on its own: weights in fp32, the width and the plan they belong to."""
    with records.written_whole(path) as partial:
        torch.save({"weights": weights, "width": width, "plan": records.read_json(plan)}, partial)


def load_model(path: Path, device: torch.device) -> Model:
    """
    Raises:
        TrainingError: missing or damaged.
    """
    if not path.exists():
        raise TrainingError(f"{path}: no trained model. Run `snakemake` for this configuration first.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise TrainingError(f"{path}: damaged ({error}). Delete it and train again.") from error
    plan = plan_from_json(content["plan"])
    network = build_network(plan, content["width"])
    network.load_state_dict(content["weights"])
    return Model(network.to(device).eval(), plan)
