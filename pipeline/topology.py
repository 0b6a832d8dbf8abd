"""The rules that turn spacing, shape and a memory target into patch, batch and U-Net topology; numbers in, numbers out.

Source: nnU-Net v2 (Isensee et al. 2021, and its 2.x code), re-derived. Axes here are the network's: coarsest first.
Knows no files and no cohort; `plan` asks it and writes down the answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

import numpy as np

SMALLEST_EDGE = 4  # voxels of a feature map
MAX_FEATURES = {2: 512, 3: 320}
CANVAS_VOXELS = {2: 2048**2, 3: 256**3}  # the first guess of a patch, before it is clipped to the scans
BASE_FEATURES = 32
LARGEST_SHARE_OF_COHORT = 0.05  # one batch never holds more of the cohort's voxels


@dataclass(frozen=True)
class MemoryReference:
    """A network of `elements` feature-map elements trains with `batch_size` patches in `gib` GiB of GPU memory."""

    elements: float
    batch_size: int
    gib: float


REFERENCE = {2: MemoryReference(85e6, 12, 8), 3: MemoryReference(560e6, 2, 8)}


@dataclass(frozen=True)
class Topology:
    """Per stage: stride and kernel per axis; and the patch, padded so that every stride divides it."""

    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    patch_size: tuple[int, ...]

    @property
    def divisors(self) -> tuple[int, ...]:
        return tuple(prod(stride[axis] for stride in self.strides) for axis in range(len(self.patch_size)))


def topology(spacing_mm: Sequence[float], patch_size: Sequence[int]) -> Topology:
    """Halve the axes of similar spacing until their edges are short; widen kernels once spacings are similar."""
    spacing, size = list(spacing_mm), list(patch_size)
    kernel = [1] * len(size)
    strides, kernels = [(1,) * len(size)], []
    while axes := _axes_to_halve(spacing, size):
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


def memory_estimate(shape: Topology, num_labels: int) -> int:
    """Elements of all feature maps that training keeps for one patch; `num_labels` counts the background."""
    features = stage_features(len(shape.strides), len(shape.patch_size))
    volumes, edges = [], np.array(shape.patch_size)
    for stride in shape.strides:
        edges = edges // np.array(stride)
        volumes.append(int(np.prod(edges)))
    pairs = list(zip(features, volumes, strict=True))
    return sum(2 * f * v for f, v in pairs) + sum(3 * f * v for f, v in pairs[:-1]) + num_labels * volumes[0]


def first_patch(spacing_mm: Sequence[float], median_shape: Sequence[float]) -> tuple[int, ...]:
    """A patch as wide in mm along each axis, as large as the canvas, but not larger than the median scan."""
    inverse = 1 / np.asarray(spacing_mm, float)
    scale = (CANVAS_VOXELS[len(inverse)] / inverse.prod()) ** (1 / len(inverse))
    return tuple(int(min(round(edge), size)) for edge, size in zip(inverse * scale, median_shape, strict=True))


def fit_memory(
    spacing_mm: Sequence[float], median_shape: Sequence[float], num_labels: int, memory_gib: float
) -> Topology:
    """The largest patch, shrunk along the axis that covers most of the scan, of which two fit into memory."""
    reference = REFERENCE[len(spacing_mm)]
    allowed = reference.elements * memory_gib / reference.gib
    fitted = topology(spacing_mm, first_patch(spacing_mm, median_shape))
    while memory_estimate(fitted, num_labels) / reference.batch_size * 2 > allowed:
        patch = list(fitted.patch_size)
        axis = int(np.argsort([edge / size for edge, size in zip(patch, median_shape, strict=True)])[-1])
        trial = patch.copy()
        trial[axis] -= fitted.divisors[axis]
        patch[axis] -= topology(spacing_mm, trial).divisors[axis]
        if patch[axis] < SMALLEST_EDGE:
            break
        fitted = topology(spacing_mm, patch)
    return fitted


def fit_batch(fitted: Topology, num_labels: int, memory_gib: float, *, median_voxels: float, num_cases: int) -> int:
    """Patches per step: what memory holds, at most a twentieth of the cohort, at least two."""
    reference = REFERENCE[len(fitted.patch_size)]
    allowed = reference.elements * memory_gib / reference.gib
    by_memory = round(allowed / memory_estimate(fitted, num_labels) * reference.batch_size)
    by_cohort = round(LARGEST_SHARE_OF_COHORT * median_voxels * num_cases / prod(fitted.patch_size))
    return max(2, min(by_memory, by_cohort))


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
