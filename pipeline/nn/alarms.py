"""What a training must not do in silence: skip steps, or learn to call everything background."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import TrainingError
from pipeline.nn.patches import PatchSource

LONGEST_STREAK = 20  # steps in a row without a finite gradient; fp16 needs a few to find its scale
EMPTY_VALIDATIONS = 3  # in a row without a foreground voxel


@dataclass(frozen=True)
class Validation:
    """`overlap`, `predicted`, `wanted`: voxels per foreground label or region over all held-out patches."""

    loss: float | None
    overlap: NDArray
    predicted: NDArray
    wanted: NDArray

    @property
    def dsc(self) -> float | None:
        """Mean over the labels that are predicted or wanted; None if there is none."""
        sizes = self.predicted + self.wanted
        found = np.flatnonzero(sizes)
        return float(np.mean(2 * self.overlap[found] / sizes[found])) if found.size else None


class Alarms:
    """Counts on the device; looks at the counts only where the training waits anyway. `labels` lack the background."""

    def __init__(self, labels: Sequence[object], device: torch.device) -> None:
        self.labels = labels
        self.streak, self.longest, self.skipped = (torch.zeros((), device=device) for _ in range(3))
        self.num_empty = self.num_told = 0
        self.is_predicted, self.is_wanted = np.zeros((2, len(labels)), bool)
        self.messages: list[str] = []

    def note_gradient(self, is_finite: torch.Tensor) -> None:
        """1 for a finite gradient, 0 for one that was skipped."""
        self.skipped += 1 - is_finite
        self.streak = (self.streak + 1) * (1 - is_finite)
        self.longest = torch.maximum(self.longest, self.streak)

    def check_gradients(self, step: int, train_loss: float, sources: Sequence[PatchSource]) -> None:
        """
        Raises:
            TrainingError: no finite loss since the last check, or too many steps in a row without a finite gradient.
        """
        if self.longest >= LONGEST_STREAK or not np.isfinite(train_loss):
            broken = [source.case for source in sources if not source.image.isfinite().all()]
            cause = f"NaN or infinity in the scans of {', '.join(broken)}" if broken else "all scans are finite"
            todo = "Correct or drop them." if broken else "Lower `train.learning_rate`."
            raise TrainingError(
                f"training: loss {train_loss} at step {step}, {int(self.longest)} steps in a row without a finite "
                f"gradient; {cause}. {todo}"
            )
        if int(self.skipped) > self.num_told:
            self.num_told = int(self.skipped)
            print(f"alarm: {int(self.skipped)} steps skipped so far, for their gradient was not finite", flush=True)

    def check_validation(self, step: int, seen: Validation) -> None:
        """Say that everything is called background, once this has lasted."""
        if not seen.wanted.any():
            return
        self.is_predicted |= seen.predicted > 0
        self.is_wanted |= seen.wanted > 0
        self.num_empty = 0 if seen.predicted.any() else self.num_empty + 1
        if self.num_empty == EMPTY_VALIDATIONS:
            self._say(f"step {step}: {EMPTY_VALIDATIONS} validations in a row found background only")

    def check_end(self) -> None:
        """Say which labels were never predicted in any validation, though held-out scans have them."""
        never = [str(self.labels[index]) for index in np.flatnonzero(self.is_wanted & ~self.is_predicted).tolist()]
        if never:
            self._say(f"label {', '.join(never)} was never predicted, though held-out scans have it")

    def _say(self, message: str) -> None:
        self.messages.append(message)
        print(f"alarm: {message}", flush=True)

    def state_dict(self) -> dict[str, Any]:
        return {
            "counts": torch.stack([self.streak, self.longest, self.skipped]),
            "num_empty": self.num_empty,
            "is_predicted": self.is_predicted.tolist(),
            "is_wanted": self.is_wanted.tolist(),
            "messages": self.messages,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.streak, self.longest, self.skipped = state["counts"].to(self.streak.device)
        self.num_empty, self.messages = state["num_empty"], state["messages"]
        self.is_predicted, self.is_wanted = (np.array(state[name], bool) for name in ("is_predicted", "is_wanted"))
