"""Preprocessed cases to batches of patches; a batch depends on the given random generator and on nothing else.

The cohort lies on the device if it fits there, else in memory, else on the disk and is mapped. Augments nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

LARGEST_SHARE_OF_MEMORY = 0.25  # of the free memory, for holding the cohort

Batch = tuple[torch.Tensor, torch.Tensor]  # image (B, C, …), reference (B, 1, …) of class indices


@dataclass(frozen=True)
class PatchSource:
    """One case: `image` (C, D, H, W), `classes` (D, H, W) of int16, `locations` (N, 4) of class and voxel."""

    case: str
    image: torch.Tensor
    classes: torch.Tensor
    locations: NDArray[np.int32]
    is_mapped: bool = False

    @cached_property
    def foreground(self) -> list[NDArray[np.int32]]:
        """(N, 3) voxels of each class that has any: the locations, told apart once and not for every patch."""
        found = self.locations[:, 0]
        return [self.locations[found == label, 1:] for label in np.unique(found)]


def open_sources(
    folders: Sequence[Path], free_bytes: int, device: torch.device, free_device_bytes: int
) -> list[PatchSource]:
    """All cases: on the device or in memory if they take at most a quarter of what is free there, else mapped."""
    size = sum((folder / f"{name}.npy").stat().st_size for folder in folders for name in ("image", "classes"))
    fits_device = size < LARGEST_SHARE_OF_MEMORY * free_device_bytes
    mode: Literal["c"] | None = None if size < LARGEST_SHARE_OF_MEMORY * free_bytes else "c"
    return [
        PatchSource(
            case=folder.name,
            image=_tensor(np.load(folder / "image.npy", mmap_mode=mode), device if fits_device else None),
            classes=_tensor(_signed(np.load(folder / "classes.npy", mmap_mode=mode)), device if fits_device else None),
            locations=np.load(folder / "locations.npy"),
            is_mapped=mode is not None and not fits_device,
        )
        for folder in folders
    ]


def _signed(classes: NDArray) -> NDArray:
    """torch computes with signed integers only; values of a regression stay as they are."""
    return classes.view(np.int16) if classes.dtype == np.uint16 else classes


def _tensor(array: NDArray, device: torch.device | None) -> torch.Tensor:
    return torch.from_numpy(array) if device is None else torch.from_numpy(array).to(device)


def draw_batch(
    sources: Sequence[PatchSource],
    patch_size: Sequence[int],
    batch_size: int,
    num_foreground: int,
    random: np.random.Generator,
) -> Batch:
    """A batch `image` (B, C, …) and `reference` (B, 1, …) of class indices; slices (H, W) when the patch has two axes.

    The first `num_foreground` patches hold a labelled voxel somewhere inside, of a class drawn evenly among those of
    their case. Where a scan is smaller than a patch, zeros surround it.
    """
    images, references = [], []
    for index in range(batch_size):
        source = sources[int(random.integers(len(sources)))]
        start = draw_start(source, patch_size, index < num_foreground, random)
        images.append(cut(source.image, start, patch_size))
        references.append(cut(source.classes[None], start, patch_size))
    return torch.stack(images), torch.stack(references)


def foreground_patches(batch_size: int, foreground: float) -> int:
    """The share `foreground` of a batch; at least one patch, if it is not 0."""
    return max(round(batch_size * foreground), 1) if foreground else 0


def draw_start(
    source: PatchSource, patch_size: Sequence[int], is_foreground: bool, random: np.random.Generator
) -> tuple[int, ...]:
    """First voxel of a patch inside the volume; around a drawn foreground voxel, at a random offset, if asked for."""
    shape = tuple(source.classes.shape)
    edges = (1,) * (len(shape) - len(patch_size)) + tuple(patch_size)
    low = np.zeros(len(shape), int)
    high = np.maximum(np.array(shape) - edges, 0)
    if is_foreground and source.foreground:
        voxels = source.foreground[random.integers(len(source.foreground))]
        voxel = voxels[random.integers(len(voxels))]
        low = np.clip(voxel - edges + 1, low, high)
        high = np.clip(voxel, low, high)
    return tuple(int(start) for start in random.integers(low, high + 1))


def cut(volume: torch.Tensor, start: Sequence[int], patch_size: Sequence[int]) -> torch.Tensor:
    """(C, D, H, W) to (C, *patch_size) from `start`; a volume that is too small lies in the middle of zeros."""
    edges = (1,) * (len(start) - len(patch_size)) + tuple(patch_size)
    part = volume[(slice(None), *(slice(first, first + edge) for first, edge in zip(start, edges, strict=True)))]
    missing = [edge - size for edge, size in zip(edges, part.shape[1:], strict=True)]
    margins = [part for gap in reversed(missing) for part in (gap // 2, gap - gap // 2)]
    padded = functional.pad(part, margins) if any(missing) else part
    return padded.reshape(len(volume), *patch_size)


def batches(draw: Callable[[int], Batch], first_step: int, *, ahead: bool) -> Iterator[Batch]:
    """`draw(step)` for every step from the first, without end; `ahead`: the next batch is drawn while one is in use."""
    if not ahead:
        yield from map(draw, count(first_step))
    with ThreadPoolExecutor(1, thread_name_prefix="patches") as reader:
        coming = reader.submit(draw, first_step)
        for step in count(first_step + 1):
            batch, coming = coming.result(), reader.submit(draw, step)
            yield batch
