"""One optimizer step on one batch: in as many parts as memory needs, with gradients that cannot ruin the weights."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.errors import TrainingError
from pipeline.nn.device import Device
from pipeline.nn.patches import Batch

GRADIENT_NORM = 12.0  # nnU-Net's


@dataclass
class Stepper:
    """What a step needs besides its batch. `parts`: of a batch, one after the other; doubled when memory runs out."""

    network: nn.Module  # as it is called: compiled, or spread over processes
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    measure: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
    device: Device
    may_split: bool = True
    parts: int = 1

    def step(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, and 1 if the gradient was finite, else 0; both stay on the device, so nothing waits.

        Raises:
            TrainingError: one patch alone does not fit into memory.
        """
        while (loss := self._loss_if_it_fits(batch)) is None:
            self._split_finer(len(batch[0]))
        self.scaler.unscale_(self.optimizer)
        is_finite = tame_gradients(self.network.parameters())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss, is_finite

    def _loss_if_it_fits(self, batch: Batch) -> torch.Tensor | None:
        """None when memory ran out; the error and all that it holds is gone by then."""
        try:
            return self._gradients(batch)
        except torch.OutOfMemoryError:
            return None

    def _gradients(self, batch: Batch) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device.where)
        for image, reference in zip(*(tensor.chunk(self.parts) for tensor in batch), strict=True):
            loss = self.measure(self.network, image, reference) * (len(image) / len(batch[0]))
            self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def _split_finer(self, batch_size: int) -> None:
        if not self.may_split or self.parts >= batch_size:
            found = "a single patch" if self.may_split else f"{batch_size} patches per process"
            raise TrainingError(
                f"{self.device}: out of memory with {found}. Set a smaller `patch_size` or `memory_gib`."
            )
        self.parts = min(2 * self.parts, batch_size)
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.where.type == "cuda":
            torch.cuda.empty_cache()
        print(f"memory: out of it; a batch of {batch_size} now goes in {self.parts} parts", flush=True)

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "parts": self.parts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.parts = state["parts"]


def tame_gradients(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """Clip to the largest norm in place; a gradient with NaN or infinity becomes zero. Returns 1 if all was finite, else 0.

    Done without asking the device, which would make it wait: a ruined step then moves by the optimizer's momentum only.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    is_finite = torch.isfinite(norm)
    factor = torch.where(is_finite, (GRADIENT_NORM / (norm + 1e-6)).clamp(max=1.0), 0.0)
    for gradient in gradients:
        torch.nan_to_num_(gradient, 0.0, 0.0, 0.0).mul_(factor)
    return is_finite.float()
