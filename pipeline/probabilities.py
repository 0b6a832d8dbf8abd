"""Probabilities of what a plan puts out: on disk in one byte per voxel and output, and as the label map that they mean.

Steps of 1/255 are finer than what a mean of a few networks can tell. Imports no torch.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import records
from pipeline.images import Segmentation, Volume
from pipeline.plan import Plan
from pipeline.regions import paint

STEPS = 255


def save_probabilities(path: Path, probabilities: Volume) -> None:
    """(L, I, J, K), 0 to 1."""
    with records.written_whole(path) as partial, partial.open("wb") as handle:
        np.savez_compressed(handle, probabilities=np.rint(probabilities * STEPS).astype(np.uint8))


def load_probabilities(path: Path) -> Volume:
    with np.load(path) as content:
        return np.asarray(content["probabilities"] / np.float32(STEPS), dtype=np.float32)


def label_map(probabilities: Volume, plan: Plan) -> Segmentation:
    """(L, I, J, K) to (I, J, K) label values: the likeliest, or every region of more than 0.5 painted in order."""
    if plan.regions:
        return paint(probabilities > 0.5, plan.regions)
    values: NDArray[np.int32] = np.asarray(plan.labels, dtype=np.int32)
    return values[probabilities.argmax(axis=0)]
