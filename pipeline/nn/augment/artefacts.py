"""What goes wrong in an MR scanner: uneven coil sensitivity, ghosts of periodic motion, sudden motion of the patient.

Each is a function of explicit parameters on (N, C, …) and a function that draws them and writes into its batch. In a
flat patch ghosts and motion stay within the slices, which such scans acquire one by one.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from pipeline.nn.augment.axes import along_axis, in_plane
from pipeline.nn.augment.draws import beside, drawn, drawn_samples, overwrite, uniform
from pipeline.nn.augment.spatial import rotations, sample, source_positions

BIAS_PROBABILITY = 0.2
BIAS_DEGREE = 3  # of the polynomial, as in MONAI and TorchIO
MAX_BIAS = 0.2  # of each coefficient; MONAI's default is 0 to 0.1, TorchIO's -0.5 to 0.5
GHOSTING_PROBABILITY = 0.1
NUM_GHOSTS = (4, 10)  # TorchIO's defaults, as is the intensity
GHOST_INTENSITY = (0.5, 1.0)
MOTION_PROBABILITY = 0.1
NUM_MOVES = 2  # TorchIO's default
MAX_TURN = math.radians(5)  # about each axis; half of TorchIO's 10°, for a patch does not know what lies around it
MAX_MOVE = 0.05  # of each edge


def draw_bias_field(image: torch.Tensor) -> None:
    chosen, dims = drawn_samples(len(image), BIAS_PROBABILITY), image.ndim - 2
    degrees = torch.stack(torch.meshgrid(*[torch.arange(BIAS_DEGREE + 1)] * dims, indexing="ij")).sum(0)
    is_used = (degrees > 0) & (degrees <= BIAS_DEGREE)  # degree 0 would be brightness
    coefficients = uniform((len(chosen), *degrees.shape), -MAX_BIAS, MAX_BIAS) * is_used
    overwrite(image, chosen, multiply_by_field, coefficients)


def multiply_by_field(image: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    """Each channel's distance from its minimum, about the signal of air, times exp of a polynomial.

    Args:
        coefficients: (N, degree + 1, …) of products of Legendre polynomials over -1 to 1 along each axis.
    """
    field = beside(coefficients, image)
    for axis, edge in enumerate(image.shape[2:]):
        basis = np.polynomial.legendre.legvander(np.linspace(-1, 1, edge), coefficients.shape[axis + 1] - 1)
        field = along_axis(field, beside(torch.from_numpy(basis).to(image.dtype), image)[None], axis)
    low = image.amin(dim=tuple(range(2, image.ndim)), keepdim=True)
    return (image - low).mul_(field.exp_()[:, None]).add_(low)


def draw_ghosts(image: torch.Tensor) -> None:
    image = in_plane(image)
    is_chosen, axes = drawn(len(image), GHOSTING_PROBABILITY), torch.randint(image.ndim - 2, (len(image),))
    for axis in range(image.ndim - 2):
        chosen = (is_chosen & (axes == axis)).nonzero()[:, 0]
        num_ghosts = torch.randint(NUM_GHOSTS[0], NUM_GHOSTS[1] + 1, (len(chosen),))
        intensity = uniform((len(chosen),), *GHOST_INTENSITY)
        overwrite(image, chosen, partial(add_ghosts, axis=axis), num_ghosts, intensity)


def add_ghosts(image: torch.Tensor, num_ghosts: torch.Tensor, intensity: torch.Tensor, *, axis: int) -> torch.Tensor:
    """Weaken every `num_ghosts`-th (N,) line of k-space along a spatial axis by `intensity` (N,), but not the central one."""
    edge = image.shape[axis + 2]
    lines = torch.arange(edge)
    is_weak = (lines % num_ghosts[:, None] == 0) & (lines != edge // 2)
    return filter_lines(image, axis, 1 - is_weak * intensity[:, None])


def draw_motion(image: torch.Tensor) -> None:
    image = in_plane(image)
    dims, edges = image.ndim - 2, torch.tensor(image.shape[2:])
    is_chosen, axes = drawn(len(image), MOTION_PROBABILITY), torch.randint(dims, (len(image),))
    for axis in range(dims):
        chosen = (is_chosen & (axes == axis)).nonzero()[:, 0]
        times = torch.rand(len(chosen), NUM_MOVES).sort(dim=1).values
        angles = uniform((len(chosen) * NUM_MOVES, 3 if dims == 3 else 1), -MAX_TURN, MAX_TURN)
        matrices = rotations(angles).unflatten(0, (-1, NUM_MOVES))
        offsets = uniform((len(chosen), NUM_MOVES, dims), -MAX_MOVE, MAX_MOVE) * edges
        overwrite(image, chosen, partial(move, axis=axis), times, matrices, offsets)


def move(
    image: torch.Tensor, times: torch.Tensor, matrices: torch.Tensor, offsets: torch.Tensor, *, axis: int
) -> torch.Tensor:
    """K-space along a spatial axis, filled line by line, of a patient who moved at `times` (N, moves), each 0 to 1, rising.

    The patient lies still where the reference says while the central line is read; `matrices` (N, moves, axes, axes)
    and `offsets` (N, moves, axes) in voxels are the poses in the other stretches of time, as in `source_positions`.
    """
    edge = image.shape[axis + 2]
    stretch = (torch.arange(edge)[:, None] / edge >= times[:, None]).sum(-1)  # (N, lines): 0 to moves
    still = stretch[:, edge // 2]
    moved = image.clone()
    for number in range(times.shape[1]):
        lines = stretch == (number + (number >= still))[:, None]
        positions = source_positions(image, matrices[:, number], offsets=offsets[:, number])
        moved += filter_lines(sample(image, positions, "bilinear") - image, axis, lines.to(image.dtype))
    return moved


def filter_lines(image: torch.Tensor, axis: int, weights: torch.Tensor) -> torch.Tensor:
    """Weigh the lines of k-space along a spatial axis by (N, lines), lowest frequency first; the real part is the image."""
    kernel = beside(torch.fft.ifft(torch.fft.ifftshift(weights, dim=1)).real, image)
    position = torch.arange(image.shape[axis + 2], device=image.device)
    matrices = kernel[:, (position[:, None] - position) % len(position)]
    return along_axis(image, matrices, axis + 1)


ARTEFACTS: dict[str, Callable[[torch.Tensor], None]] = {
    "bias_field": draw_bias_field,
    "ghosting": draw_ghosts,
    "motion": draw_motion,
}
