"""What augmentation costs on the CPU, in milliseconds per sample: `python -m tests.bench.augmentation`.

One row per change: its cost where it happens, its share of the samples, the product, and what MONAI's transform takes with
the same parameters. The last rows are `augment` as a training step calls it, beside what data and augmentation may take
together: a tenth of 50 ms, what a sample costs at U-Net widths 8 to 64 on two cores.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial

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
    torch.empty(2**23)  # as a training's larger arrays do: the allocator keeps what is freed from now on, up to 32 MB
    torch.manual_seed(0)
    print(f"batch {given.batch} of {given.patch}, {given.threads} threads, ms per sample, median of {given.repeats}")
    print(f"{'change':22} {'where':>8} {'share':>6} {'mean':>8} {'MONAI':>8}")
    for name, share, ours, theirs in changes(tuple(given.patch)):
        cost = statistics.median(durations_ms(ours, given.repeats))
        monai = f"{statistics.median(durations_ms(theirs, given.repeats)):8.2f}" if theirs else f"{'none':>8}"
        print(f"{name:22} {cost:8.2f} {share:6.3f} {cost * share:8.3f} {monai}", flush=True)
    slices = 16 * given.batch
    for name, options, shape in (
        ("nnU-Net's", Options(False, ()), (given.batch, 1, *given.patch)),
        ("and elastic", Options(True, ()), (given.batch, 1, *given.patch)),
        ("and artefacts", Options(True, ("bias_field", "ghosting", "motion")), (given.batch, 1, *given.patch)),
        (f"elastic, {slices} slices", Options(True, ()), (slices, 1, *given.patch[1:])),
    ):
        image, reference = torch.randn(shape), torch.randint(3, shape, dtype=torch.int16)
        work = partial(augment, image, reference, options, [Mirror(len(shape) - 3)])
        cost = statistics.mean(durations_ms(work, 10 * given.repeats)) / shape[0]  # no two calls are alike
        print(
            f"{name:22} {'':8} {'':6} {cost:8.3f} {'':8} {ALLOWED_MS * math.prod(shape[2:]) / math.prod(given.patch):.2f} allowed"
        )


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
    patch: tuple[int, ...],
) -> list[tuple[str, float, Callable[[], object], Callable[[], object] | None]]:
    """Name, share of the samples, ours and MONAI's on one sample, for so many of a batch are changed at once on a CPU."""
    image, reference = torch.randn(1, 1, *patch), torch.randint(3, (1, 1, *patch), dtype=torch.int16)
    count, items, one = 1, image[:, 0], image[0]
    matrices = spatial.rotations(torch.rand(count, 3) * 0.5) * 1.1
    shifts = torch.rand(count, 3, *(spatial.CONTROL_POINTS,) * 3) * 0.8 - 0.4
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
