"""Preprocessed cases to batches of patches; a batch depends on the given random generator and on nothing else.

Reads the arrays of `preprocess`, memory-mapped or held in memory; augments nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

LARGEST_SHARE_OF_MEMORY = 0.25  # of the free memory, for holding the cohort


@dataclass(frozen=True)
class PatchSource:
    """One case: `image` (C, D, H, W), `classes` (D, H, W), `locations` (N, 4) of class and voxel."""

    case: str
    image: NDArray[np.float32]
    classes: NDArray[np.uint16]
    locations: NDArray[np.int32]


def open_sources(folders: Sequence[Path], free_bytes: int) -> list[PatchSource]:
    """All cases, in memory if they take at most a quarter of what is free, else memory-mapped."""
    size = sum((folder / f"{name}.npy").stat().st_size for folder in folders for name in ("image", "classes"))
    mode: Literal["r"] | None = None if size < LARGEST_SHARE_OF_MEMORY * free_bytes else "r"
    return [
        PatchSource(
            case=folder.name,
            image=np.load(folder / "image.npy", mmap_mode=mode),
            classes=np.load(folder / "classes.npy", mmap_mode=mode),
            locations=np.load(folder / "locations.npy"),
        )
        for folder in folders
    ]


def draw_batch(
    sources: Sequence[PatchSource],
    patch_size: Sequence[int],
    batch_size: int,
    foreground: float,
    random: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch `image` (B, C, …) and `reference` (B, 1, …) of class indices; slices (H, W) when the patch has two axes.

    A share `foreground` of the patches (at least one, if it is not 0) holds a labelled voxel somewhere inside, of a
    class drawn evenly among those of its case. Where a scan is smaller than a patch, zeros surround it.
    """
    num_foreground = max(round(batch_size * foreground), 1) if foreground else 0
    images, references = [], []
    for index in range(batch_size):
        source = sources[int(random.integers(len(sources)))]
        start = draw_start(source, patch_size, index < num_foreground, random)
        images.append(cut(source.image, start, patch_size))
        references.append(cut(source.classes[None], start, patch_size))
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(references).astype(np.int16))


def draw_start(
    source: PatchSource, patch_size: Sequence[int], is_foreground: bool, random: np.random.Generator
) -> tuple[int, ...]:
    """First voxel of a patch inside the volume; around a drawn foreground voxel, at a random offset, if asked for."""
    shape = source.classes.shape
    edges = (1,) * (len(shape) - len(patch_size)) + tuple(patch_size)
    low = np.zeros(len(shape), int)
    high = np.maximum(np.array(shape) - edges, 0)
    if is_foreground and len(source.locations):
        label = random.choice(np.unique(source.locations[:, 0]))
        voxels = source.locations[source.locations[:, 0] == label, 1:]
        voxel = voxels[random.integers(len(voxels))]
        low = np.clip(voxel - edges + 1, low, high)
        high = np.clip(voxel, low, high)
    return tuple(int(start) for start in random.integers(low, high + 1))


def cut(array: NDArray, start: Sequence[int], patch_size: Sequence[int]) -> NDArray:
    """(C, D, H, W) to (C, *patch_size) from `start`; a volume that is too small lies in the middle of zeros."""
    edges = (1,) * (len(start) - len(patch_size)) + tuple(patch_size)
    part = array[(slice(None), *(slice(first, first + edge) for first, edge in zip(start, edges, strict=True)))]
    missing = [edge - size for edge, size in zip(edges, part.shape[1:], strict=True)]
    padded = np.pad(part, [(0, 0), *((gap // 2, gap - gap // 2) for gap in missing)]) if any(missing) else part
    return padded.reshape(len(array), *patch_size)
