"""Predictions on disk, slab by slab: one byte per voxel and output on the prepared grid, compressed.

Steps of 1/255 are finer than what a mean of a few networks can tell. Imports no torch.
"""

import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import disk
from pipeline.preprocess import Placement
from pipeline.restore import STEPS, Prediction

SHAPE = "shape"


def save_prediction(path: Path, prediction: Prediction) -> Prediction:
    """The same prediction; its slabs are stored on their way, and the file is there once the last one has passed."""

    def passing() -> Iterator[NDArray]:
        with (
            disk.written_whole(path) as partial,
            zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, True, 1) as archive,
        ):
            _write(archive, SHAPE, np.array(prediction.shape))
            for index, slab in enumerate(prediction.slabs):
                _write(archive, f"{index:05d}", np.rint(slab * STEPS).astype(np.uint8))
                yield slab

    return replace(prediction, slabs=passing())


def _write(archive: zipfile.ZipFile, name: str, array: NDArray) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, array)


def open_prediction(path: Path, placement: Placement) -> Prediction:
    """uint8 in steps of 1/255, each slab read when it is asked for, and again each time that it is."""
    with np.load(path) as content:
        shape = tuple(int(size) for size in content[SHAPE])
    return Prediction(_Slabs(path), shape, placement)


class _Slabs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[NDArray]:
        with np.load(self.path) as content:
            for name in sorted(set(content.files) - {SHAPE}):
                yield content[name]
