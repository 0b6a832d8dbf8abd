"""Measures beside MONAI: DSC, HD95 and NSD of 8 labels of 256 x 256 x 128 voxels, on one thread: `python -m tests.bench.metrics`.

Both get the same two label maps and measure them in turns, with nothing else running; medians of the processor's time.
MONAI needs one channel per label, which it makes itself. Ours measures IoU, HD, ASSD and volumes too, in the same pass.
"""

import time
from collections.abc import Callable
from statistics import median

import monai
import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
from monai.networks.utils import one_hot
from numpy.typing import NDArray
from scipy import ndimage

from pipeline import errors
from pipeline.metrics import dsc, measure
from tests.bench.ours import machine, record

SHAPE, SPACING_MM, TOLERANCE_MM, LABELS = (256, 256, 128), (0.8, 0.8, 2.5), 2.0, range(1, 9)
MESH = 16  # voxels between the points that bend a surface


def main(rounds: int = 5) -> None:
    torch.set_num_threads(1)
    reference, prediction = make_pair()
    systems: dict[str, Callable[[], object]] = {
        f"MONAI {monai.__version__}": lambda: by_monai(reference, prediction),
        "Segsnake": lambda: by_us(reference, prediction, has_voxel_edges=False),
        "Segsnake, voxel edges too": lambda: by_us(reference, prediction, has_voxel_edges=True),
        "Segsnake, DSC alone": lambda: dsc(reference, prediction, labels=LABELS),
    }
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(rounds):
        for name, work in systems.items():
            start = time.process_time()
            work()
            seconds[name].append(time.process_time() - start)
    first = median(seconds[next(iter(systems))])
    sizes = f"{len(LABELS)} labels of {'x'.join(map(str, SHAPE))} voxels, {rounds} rounds, {machine(1)}"
    record(
        [
            ("measures", name, f"{median(taken):.2f} s, {first / median(taken):.1f} times as fast as the first", sizes)
            for name, taken in seconds.items()
        ]
    )


def make_pair() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Eight bent balls a fifth of the volume wide, and the same bent otherwise; mean DSC about 0.95."""
    rng = np.random.default_rng(0)
    bent, other = (_waves(rng) for _ in range(2))
    reference, prediction = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    grid = np.ogrid[tuple(slice(0, size) for size in SHAPE)]
    for number, label in enumerate(LABELS):
        middles = [size * (0.75 if number >> axis & 1 else 0.25) for axis, size in enumerate(SHAPE)]
        off = [((at - middle) / (0.2 * size)) ** 2 for at, middle, size in zip(grid, middles, SHAPE, strict=True)]
        inside = off[0] + off[1] + off[2] - 1 - 0.16 * bent
        reference[inside < 0] = label
        prediction[inside < 0.12 * other] = label
    return reference, prediction


def _waves(rng: np.random.Generator) -> NDArray[np.float32]:
    coarse = rng.normal(size=[size // MESH + 2 for size in SHAPE]).astype(np.float32)
    return ndimage.zoom(coarse, MESH, order=1)[tuple(slice(0, size) for size in SHAPE)]


def by_us(reference: NDArray[np.uint8], prediction: NDArray[np.uint8], *, has_voxel_edges: bool) -> object:
    options = {"labels": LABELS, "spacing_mm": SPACING_MM, "tolerance_mm": TOLERANCE_MM}
    return measure(reference, prediction, **options, has_voxel_edges=has_voxel_edges)


def by_monai(reference: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> object:
    num_channels = len(LABELS) + 1
    images = [one_hot(torch.from_numpy(one)[None, None], num_channels) for one in (prediction, reference)]
    return [
        compute_dice(*images, include_background=False),
        compute_hausdorff_distance(*images, percentile=95, spacing=SPACING_MM),
        compute_surface_dice(*images, [TOLERANCE_MM] * len(LABELS), spacing=SPACING_MM),
    ]


if __name__ == "__main__":
    errors.run(main)
