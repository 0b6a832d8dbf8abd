"""Trained networks to files that run without this project: all folds as one exported program, and single ones as ONNX.

Each file is read back and compared with the network that it came from, in fp32 on the CPU.
"""

import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pipeline import disk
from pipeline.errors import ExportError
from pipeline.nn.checkpoints import Model
from pipeline.nn.networks.shallow import plain
from pipeline.nn.outputs import activate
from pipeline.plan import Plan

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of what a file puts out; relative to the largest value where that is above 1


class MeanOfFolds(nn.Module):
    """(B, C, …) of the plan's patch to (B, L, …): the mean of probabilities, or of values in the unit of the cohort."""

    def __init__(self, models: Sequence[Model]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(plain(model.network) for model in models)
        self.plan = models[0].plan

    def forward(self, image: Tensor) -> Tensor:
        total = activate(self.networks[0](image), self.plan)
        for network in self.networks[1:]:
            total = total + activate(network(image), self.plan)
        return total * (self.plan.target_scale / len(self.networks))


def missing_packages() -> list[str]:
    """What has to be installed before a network can be written, and checked, as ONNX."""
    return [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]


def save_program(path: Path, models: Sequence[Model]) -> float:
    """Write what `torch.export.load` reads, for any number of windows at once. Returns the largest difference to the networks.

    Raises:
        ExportError: the program does not compute what the networks do.
    """
    plan, ensemble = models[0].plan, MeanOfFolds(models).eval()
    with disk.written_whole(path) as partial, partial.open("wb") as handle:
        torch.export.save(_trace(ensemble, plan), handle)
    image = _example(plan, num_windows=1)
    with torch.no_grad():
        return _compare(path, torch.export.load(path).module()(image), ensemble(image))


def save_onnx(path: Path, model: Model) -> float:
    """Write `image` (B, C, …) to `logits` (B, L, …) of one network. Returns the largest difference to it.

    Raises:
        ExportError: an operator of the network has no ONNX form, or the file does not compute what the network does.
    """
    import onnxruntime

    network = plain(model.network)
    with disk.written_whole(path) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of its own code
        try:
            torch.onnx.export(
                _trace(network, model.plan),
                f=partial,
                input_names=["image"],
                output_names=["logits"],
                external_data=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).partition("\n")[0]
            raise ExportError(f"{path}: {model.plan.network} cannot be written as ONNX: {reason}") from error
    image = _example(model.plan, num_windows=1)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": image.numpy()})
    with torch.no_grad():
        return _compare(path, torch.from_numpy(logits), network(image))


def _trace(network: nn.Module, plan: Plan) -> ExportedProgram:
    """Two windows to trace with: torch takes a single one for a size that never changes."""
    return torch.export.export(network, (_example(plan, num_windows=2),), dynamic_shapes=({0: Dim("windows")},))


def _example(plan: Plan, *, num_windows: int) -> Tensor:
    shape = (num_windows, len(plan.channels), *plan.patch_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _compare(path: Path, found: Tensor, expected: Tensor) -> float:
    difference = float((found - expected).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):  # also of NaN
        raise ExportError(
            f"{path}: {difference:.3g} off what the network puts out, {TOLERANCE:g} at most expected. "
            "Try another version of torch or of the ONNX packages."
        )
    return difference
