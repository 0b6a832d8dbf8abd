"""The rules that turn spacing, shape and a memory target into patch, batch and U-Net topology; numbers in, numbers out.

Source: nnU-Net v2 (Isensee et al. 2021, and its 2.x code), re-derived. Axes here are the network's: coarsest first.
Knows no files and no cohort; `plan` asks it and writes down the answers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, prod

import numpy as np

SMALLEST_EDGE = 4  # voxels of a feature map
MAX_FEATURES = {2: 512, 3: 320}
CANVAS_VOXELS = {2: 2048**2, 3: 256**3}  # the first guess of a patch, before it is clipped to the scans
BASE_FEATURES = 32
SMALLEST_BATCH = 2
RESIDUAL_BLOCKS = (1, 3, 4, 6)  # of the first stages; all further ones have as many as the last
LOW_RESOLUTION_BELOW = 0.25  # share of the median scan that a patch covers
SPACING_GROWTH = 1.03
SMALLEST_LOW_RESOLUTION_GAIN = 2  # voxels of the full over the low resolution


@dataclass(frozen=True)
class MemoryReference:
    """A network of `elements` feature-map elements trains with `batch_size` patches in `gib` GiB of GPU memory."""

    elements: float
    batch_size: int
    gib: float


@dataclass(frozen=True)
class Preset:
    """How one kind of U-Net fills memory: its reference by dims, and the cohort's share that one batch may hold."""

    reference: dict[int, MemoryReference]
    largest_share_of_cohort: float
    is_residual: bool


PRESETS = {
    "plain": Preset({2: MemoryReference(85e6, 12, 8), 3: MemoryReference(560e6, 2, 8)}, 0.05, is_residual=False),
    "M": Preset({2: MemoryReference(135e6, 12, 8), 3: MemoryReference(680e6, 2, 8)}, 1.0, is_residual=True),
    "L": Preset({2: MemoryReference(380e6, 12, 24), 3: MemoryReference(2.1e9, 2, 24)}, 1.0, is_residual=True),
}


@dataclass(frozen=True)
class Memory:
    """What a network may take: `gib` GiB, for `num_outputs` maps at full size (labels with background, or regions)."""

    gib: float
    num_outputs: int
    preset: Preset = PRESETS["plain"]

    def allowed(self, dims: int) -> float:
        """Elements of feature maps."""
        reference = self.preset.reference[dims]
        return reference.elements * self.gib / reference.gib


@dataclass(frozen=True)
class Topology:
    """Per stage: stride and kernel per axis; and the patch, padded so that every stride divides it."""

    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    patch_size: tuple[int, ...]

    @property
    def divisors(self) -> tuple[int, ...]:
        return tuple(prod(stride[axis] for stride in self.strides) for axis in range(len(self.patch_size)))


def topology(spacing_mm: Sequence[float], patch_size: Sequence[int], most_stages: int | None = None) -> Topology:
    """Halve the axes of similar spacing until their edges are short; widen kernels once spacings are similar."""
    spacing, size = list(spacing_mm), list(patch_size)
    kernel = [1] * len(size)
    strides, kernels = [(1,) * len(size)], []
    while (axes := _axes_to_halve(spacing, size)) and len(strides) != most_stages:
        kernel = [3 if side / min(spacing) < 2 else old for side, old in zip(spacing, kernel, strict=True)]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in axes else 1 for axis in range(len(size))))
        for axis in axes:
            spacing[axis] *= 2
            size[axis] = ceil(size[axis] / 2)
    kernels.append((3,) * len(size))
    divisors = [prod(stride[axis] for stride in strides) for axis in range(len(size))]
    padded = tuple(ceil(edge / divisor) * divisor for edge, divisor in zip(patch_size, divisors, strict=True))
    return Topology(tuple(strides), tuple(kernels), padded)


def _axes_to_halve(spacing: Sequence[float], size: Sequence[int]) -> list[int]:
    long = [axis for axis, edge in enumerate(size) if edge >= 2 * SMALLEST_EDGE]
    finest = min((spacing[axis] for axis in long), default=0)
    axes = [axis for axis in long if spacing[axis] / finest < 2]
    is_too_short_alone = len(axes) == 1 and size[axes[0]] < 3 * SMALLEST_EDGE
    return [] if is_too_short_alone else axes


def stage_features(num_stages: int, dims: int, base: int = BASE_FEATURES) -> tuple[int, ...]:
    """Feature maps per stage: doubled from `base`, with the cap scaled alike."""
    cap = MAX_FEATURES[dims] * base // BASE_FEATURES
    return tuple(min(base * 2**stage, cap) for stage in range(num_stages))


def memory_estimate(shape: Topology, memory: Memory) -> int:
    """Elements of all feature maps that training keeps for one patch."""
    dims = len(shape.patch_size)
    features, voxels = np.array(stage_features(len(shape.strides), dims)), _voxels_per_stage(shape)
    elements = features * voxels
    outputs = memory.num_outputs * voxels[0]
    if not memory.preset.is_residual:  # two convolutions per stage, both ways, and a transposed one on the way up
        return int(2 * elements.sum() + 3 * elements[:-1].sum() + outputs)
    blocks = np.array([RESIDUAL_BLOCKS[min(stage, len(RESIDUAL_BLOCKS) - 1)] for stage in range(len(features))])
    projections = np.arange(len(features)) > 0  # of the skip, where features or edges change
    stem = features[0] * voxels[0]
    return int(stem + (elements * (2 * blocks + projections)).sum() + 2 * elements[:-1].sum() + outputs)


def _voxels_per_stage(shape: Topology) -> np.ndarray:
    return np.array(shape.patch_size).prod() // np.cumprod([prod(stride) for stride in shape.strides])


def memory_gib_of(shape: Topology, batch_size: int, memory: Memory) -> float:
    """The estimate for a batch, by what the reference network takes."""
    reference = memory.preset.reference[len(shape.patch_size)]
    return memory_estimate(shape, memory) / reference.elements * batch_size / reference.batch_size * reference.gib


def first_patch(spacing_mm: Sequence[float], median_shape: Sequence[float]) -> tuple[int, ...]:
    """A patch as wide in mm along each axis, as large as the canvas, but not larger than the median scan."""
    inverse = 1 / np.asarray(spacing_mm, float)
    scale = (CANVAS_VOXELS[len(inverse)] / inverse.prod()) ** (1 / len(inverse))
    return tuple(int(min(round(edge), size)) for edge, size in zip(inverse * scale, median_shape, strict=True))


def fit_memory(
    spacing_mm: Sequence[float], median_shape: Sequence[float], memory: Memory, most_stages: int | None = None
) -> Topology:
    """The largest patch, shrunk along the axis that covers most of the scan, of which a batch fits into memory."""
    dims = len(spacing_mm)
    # nnU-Net compares a batch of two with the reference's for plain U-Nets, and one patch for residual ones.
    share = 1 if memory.preset.is_residual else SMALLEST_BATCH / memory.preset.reference[dims].batch_size
    fitted = topology(spacing_mm, first_patch(spacing_mm, median_shape), most_stages)
    while memory_estimate(fitted, memory) * share > memory.allowed(dims):
        patch = list(fitted.patch_size)
        axis = int(np.argsort([edge / size for edge, size in zip(patch, median_shape, strict=True)])[-1])
        trial = patch.copy()
        trial[axis] -= fitted.divisors[axis]
        patch[axis] -= topology(spacing_mm, trial, most_stages).divisors[axis]
        if patch[axis] < SMALLEST_EDGE:
            break
        fitted = topology(spacing_mm, patch, most_stages)
    return fitted


def fit_batch(fitted: Topology, memory: Memory, *, median_voxels: float, num_cases: int) -> int:
    """Patches per step: what memory holds, at most the preset's share of the cohort, at least two."""
    dims = len(fitted.patch_size)
    reference = memory.preset.reference[dims]
    by_memory = round(memory.allowed(dims) / memory_estimate(fitted, memory) * reference.batch_size)
    share = memory.preset.largest_share_of_cohort
    by_cohort = round(share * median_voxels * num_cases / prod(fitted.patch_size))
    return max(SMALLEST_BATCH, min(by_memory, by_cohort))


def low_resolution(
    spacing_mm: Sequence[float],
    median_shape: Sequence[float],
    fit: Callable[[Sequence[float], Sequence[float]], Topology],
) -> tuple[tuple[float, ...] | None, str]:
    """The spacing at which a patch sees a quarter of the median scan, or None where nothing is gained; and why.

    Args:
        fit: spacing and median shape to the topology that fits into memory, such as `fit_memory`.
    """
    full, shape = np.asarray(spacing_mm, float), np.asarray(median_shape, float)
    spacing, covered = full.copy(), _covered(fit(spacing_mm, median_shape), shape)
    if covered >= LOW_RESOLUTION_BELOW:
        return None, f"a patch at full resolution covers {min(covered, 1):.0%} of the median scan, a quarter or more"
    while covered < LOW_RESOLUTION_BELOW:
        finer = spacing * 2 < spacing.max()
        spacing[finer if finer.any() else slice(None)] *= SPACING_GROWTH
        shape = full / spacing * median_shape
        covered = _covered(fit(spacing.tolist(), shape.round().tolist()), shape)
    gain = prod(median_shape) / shape.prod()
    if gain < SMALLEST_LOW_RESOLUTION_GAIN:
        return None, f"scans at full resolution have only {gain:.1f} times the voxels of low resolution, 2 expected"
    return tuple(float(side) for side in spacing), f"grown until a patch covers {covered:.0%} of the median scan"


def _covered(fitted: Topology, median_shape: np.ndarray) -> float:
    """Share of the median scan that a patch sees."""
    return float(prod(fitted.patch_size) / median_shape.prod())


def target_spacing(spacings_mm: np.ndarray, shapes: np.ndarray) -> tuple[float, ...]:
    """Per axis the median; the one coarse axis of an anisotropic cohort is refined to its 10th percentile.

    Args:
        spacings_mm: (N, 3) of the cases.
        shapes: (N, 3) voxels of the cases, cropped to nonzero.
    """
    target = np.median(spacings_mm, axis=0)
    size = np.median(shapes, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    if target[worst] > 3 * target[others].max() and size[worst] * 3 < size[others].min():
        refined = np.percentile(spacings_mm[:, worst], 10)
        coarsest_other = target[others].max()
        target[worst] = refined if refined >= coarsest_other else max(coarsest_other, refined) + 1e-5
    return tuple(float(side) for side in target)


def coarsest_first(spacing_mm: Sequence[float]) -> tuple[int, ...]:
    """The order of axes in which the one of the largest spacing leads and the others keep their order."""
    worst = int(np.argmax(spacing_mm))
    return (worst, *(axis for axis in range(len(spacing_mm)) if axis != worst))
