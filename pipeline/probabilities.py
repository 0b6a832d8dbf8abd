"""Class probabilities on disk in one byte per voxel and class: 1/255 steps, which no mean of a few networks can see."""

from pathlib import Path

import numpy as np

from pipeline import records
from pipeline.images import Volume

STEPS = 255


def save_probabilities(path: Path, probabilities: Volume) -> None:
    """(L, I, J, K), 0 to 1."""
    with records.written_whole(path) as partial, partial.open("wb") as handle:
        np.savez_compressed(handle, probabilities=np.rint(probabilities * STEPS).astype(np.uint8))


def load_probabilities(path: Path) -> Volume:
    with np.load(path) as content:
        return np.asarray(content["probabilities"] / np.float32(STEPS), dtype=np.float32)
