"""What augmentation costs: `python tests/bench/augmentation.py`, milliseconds per sample on the CPU.

One row per change: its cost where it happens, its share of the samples, the product, and what MONAI's transform takes
for one sample with the same parameters. The last rows are `augment` as a training step calls it, and the share of a
step at which data and augmentation shall stay: a tenth of 50 ms per sample at U-Net widths 8 to 64 on two cores.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from monai.transforms import (
    AdjustContrast,
    Affine,
    Flip,
    GaussianSmooth,
    Rand3DElastic,
    RandBiasField,
    RandGaussianNoise,
    RandSimulateLowResolution,
    ScaleIntensity,
    ScaleIntensityFixedMean,
)

from pipeline.mirrors import Mirror
from pipeline.nn.augment import Options, artefacts, augment, intensity, spatial

ALLOWED_MS = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patch", type=int, nargs=3, default=[40, 56, 40])
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=21)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    image = torch.randn(given.batch, 1, *given.patch)
    reference = torch.randint(3, (given.batch, 1, *given.patch), dtype=torch.int16)

    print(f"batch {given.batch} of {given.patch}, {given.threads} threads, ms per sample, median of {given.repeats}")
    print(f"{'change':14} {'where':>8} {'share':>6} {'mean':>8} {'MONAI':>8}")
    for name, share, ours, theirs in changes(image, reference):
        cost = median_ms(ours, given.repeats) / given.batch
        monai = f"{median_ms(theirs, given.repeats):8.2f}" if theirs else f"{'none':>8}"
        print(f"{name:14} {cost:8.2f} {share:6.3f} {cost * share:8.3f} {monai}")
    for name, options in (
        ("nnU-Net's", Options(False, ())),
        ("and elastic", Options(True, ())),
        ("and artefacts", Options(True, ("bias_field", "ghosting", "motion"))),
    ):
        cost = mean_ms(lambda options=options: augment(image, reference, options, [Mirror(2)]), 10 * given.repeats)
        print(f"{name:14} {'':8} {'':6} {cost / given.batch:8.3f}          {ALLOWED_MS:g} allowed with the data")


def median_ms(work: Callable[[], object], repeats: int) -> float:
    return statistics.median(durations_ms(work, repeats))


def mean_ms(work: Callable[[], object], repeats: int) -> float:
    """For work that differs from call to call."""
    return statistics.mean(durations_ms(work, repeats))


def durations_ms(work: Callable[[], object], repeats: int) -> list[float]:
    for _ in range(3):
        work()
    durations = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        durations.append(1000 * (time.perf_counter() - begin))
    return durations


def changes(
    image: torch.Tensor, reference: torch.Tensor
) -> list[tuple[str, float, Callable[[], object], Callable[[], object] | None]]:
    """Name, share of the samples, ours on the whole batch, MONAI's on one sample."""
    count, items, one = len(image), image[:, 0], image[0]
    matrices = spatial.rotations(torch.rand(count, 3) * 0.5) * 1.1
    points = (spatial.CONTROL_POINTS,) * 3
    shifts = torch.rand(count, 3, *points) * 0.8 - 0.4
    affine = torch.eye(4)
    affine[:3, :3] = matrices[0]
    factor, sigma = torch.full((count,), 1.2), torch.full((count, 3), 0.8)
    turn = Affine(affine=affine, padding_mode="zeros", image_only=True)
    turn_reference = Affine(affine=affine, mode="nearest", padding_mode="zeros", image_only=True)
    elastic = Rand3DElastic(sigma_range=(6, 6), magnitude_range=(20, 20), prob=1, padding_mode="zeros")
    low_resolution = RandSimulateLowResolution(prob=1, zoom_range=(0.7, 0.7))
    bias, noise = RandBiasField(prob=1), RandGaussianNoise(prob=1, std=0.3)
    coefficients = torch.rand(count, 4, 4, 4) * 0.4 - 0.2
    times = torch.tensor([[0.3, 0.8]]).repeat(count, 1)
    poses, offsets = matrices[:, None].expand(-1, 2, -1, -1), torch.ones(count, 2, 3)
    ghosts = torch.full((count,), 5)
    return [
        (
            "rotate, scale",
            0.36,
            lambda: spatial.warp(image, reference, matrices),
            lambda: (turn(one), turn_reference(reference[0].float())),
        ),
        ("elastic", 0.2, lambda: spatial.warp(image, reference, matrices, shifts), lambda: elastic(one)),
        ("noise", 0.1, lambda: intensity.add_noise(image, factor), lambda: noise(one)),
        ("blur", 0.1, lambda: intensity.blur(items, sigma), lambda: GaussianSmooth(0.8)(one)),
        ("brightness", 0.15, lambda: intensity.brighten(items, factor), lambda: ScaleIntensity(None, None, 0.2)(one)),
        (
            "contrast",
            0.15,
            lambda: intensity.stretch(items, factor),
            lambda: ScaleIntensityFixedMean(0.2, preserve_range=True)(one),
        ),
        ("low resolution", 0.125, lambda: intensity.coarsen(items, factor - 0.5), lambda: low_resolution(one)),
        ("gamma", 0.4, lambda: intensity.bend(items, factor), lambda: AdjustContrast(1.2, retain_stats=True)(one)),
        (
            "mirror",
            0.5,
            lambda: (image.flip(4), spatial.swap(reference.flip(4), [(1, 2)])),
            lambda: (Flip(2)(one), Flip(2)(reference[0])),
        ),
        ("bias field", 0.2, lambda: artefacts.multiply_by_field(image, coefficients), lambda: bias(one)),
        ("ghosting", 0.1, lambda: artefacts.add_ghosts(image, ghosts, factor - 0.5, axis=1), None),
        ("motion", 0.1, lambda: artefacts.move(image, times, poses, offsets, axis=1), None),
    ]


if __name__ == "__main__":
    main()
