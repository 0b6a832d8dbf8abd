"""Rotation, scale and elastic deformation as one resampling, and mirroring with labels that change sides.

Voxels are turned, not millimetres, as in nnU-Net: a plan resamples to nearly even spacing, or its patch is flat.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch.nn import functional

from pipeline.mirrors import Mirror
from pipeline.nn.augment.axes import along_axis, in_plane, is_flat
from pipeline.nn.augment.draws import beside, drawn, drawn_samples, overwrite, turns, uniform

ROTATION_PROBABILITY = 0.2
SCALE_PROBABILITY = 0.2
ELASTIC_PROBABILITY = 0.2
MIRROR_PROBABILITY = 0.5
MAX_ANGLE = math.radians(30)  # about each axis of a volume
MAX_ANGLE_IN_PLANE = math.radians(180)  # of slices
MAX_ANGLE_OF_LONG_SLICE = math.radians(15)  # of a 2D patch with one edge over 1.5 times the other, as in nnU-Net
LONG_SLICE = 1.5
SCALE = (0.7, 1.4)  # of the distance between sampled voxels: above one, things shrink
CONTROL_POINTS = 7  # per axis, of the cubic B-spline that deforms a patch; TorchIO's number
MAX_SHIFT = 0.4  # of their distance: up to 0.403 in 3D and 0.489 in 2D nothing can fold (Choi and Lee, 2000)


def deform(image: torch.Tensor, reference: torch.Tensor, *, is_elastic: bool) -> None:
    """Overwrite some samples of (B, C, …) and (B, 1, …) with what one resampling makes of them.

    A flat patch is turned, scaled and deformed within its slices, all of them alike.
    """
    max_angle = largest_angle(image.shape[2:])
    image, reference = in_plane(image), in_plane(reference)
    dims = image.ndim - 2
    is_turned, is_scaled = drawn(len(image), ROTATION_PROBABILITY), drawn(len(image), SCALE_PROBABILITY)
    is_bent = drawn(len(image), ELASTIC_PROBABILITY) & is_elastic
    chosen = (is_turned | is_scaled | is_bent).nonzero()[:, 0]
    if not len(chosen):
        return
    angles = uniform((len(chosen), 3 if dims == 3 else 1), -max_angle, max_angle) * is_turned[chosen, None]
    scale = torch.where(is_scaled[chosen], uniform((len(chosen),), *SCALE), 1.0)
    shifts = None
    if is_bent.any():
        points = uniform((len(chosen), dims, *(CONTROL_POINTS,) * dims), -MAX_SHIFT, MAX_SHIFT)
        shifts = points * is_bent[chosen].view(-1, *(1,) * (dims + 1))
    matrices = rotations(angles) * scale[:, None, None]
    for part in turns(image, len(chosen)):
        index = beside(chosen[part], image)
        moved = image.index_select(0, index), reference.index_select(0, index)
        shifted = shifts[part] if shifts is not None and is_bent[chosen[part]].any() else None
        image[index], reference[index] = warp(*moved, matrices[part], shifted)


def largest_angle(shape: tuple[int, ...]) -> float:
    if len(shape) == 3:
        return MAX_ANGLE_IN_PLANE if is_flat(shape) else MAX_ANGLE
    return MAX_ANGLE_OF_LONG_SLICE if max(shape) > LONG_SLICE * min(shape) else MAX_ANGLE_IN_PLANE


def rotations(angles: torch.Tensor) -> torch.Tensor:
    """Angles (N, 3) about the three axes, or (N, 1) within a plane, to matrices (N, axes, axes)."""
    planes = [(0, 1)] if angles.shape[1] == 1 else [(1, 2), (0, 2), (0, 1)]
    dims = 2 if len(planes) == 1 else 3
    matrices = torch.eye(dims).repeat(len(angles), 1, 1)
    for angle, (first, second) in zip(angles.T, planes, strict=True):
        turn = torch.eye(dims).repeat(len(angles), 1, 1)
        turn[:, first, first] = turn[:, second, second] = angle.cos()
        turn[:, first, second], turn[:, second, first] = -angle.sin(), angle.sin()
        matrices = matrices @ turn
    return matrices


def warp(
    image: torch.Tensor, reference: torch.Tensor, matrices: torch.Tensor, shifts: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Resample (N, C, …) linearly and (N, C, …) integers by the nearest voxel, at the same `source_positions`.

    What comes from outside is 0. A reference of float values is resampled linearly too.
    """
    positions = source_positions(image, matrices, shifts)
    if reference.is_floating_point():
        return sample(image, positions, "bilinear"), sample(reference, positions, "bilinear")
    nearest = sample(reference.float(), positions, "nearest").to(reference.dtype)
    return sample(image, positions, "bilinear"), nearest


def source_positions(
    image: torch.Tensor,
    matrices: torch.Tensor,
    shifts: torch.Tensor | None = None,
    offsets: torch.Tensor | None = None,
) -> torch.Tensor:
    """(N, axes, …): the voxel of (N, C, …) that each voxel is taken from: centre + matrix (voxel - centre + shift) + offset.

    Args:
        matrices: (N, axes, axes).
        shifts: (N, axes, points, …) at the control points of a cubic B-spline over the patch, in their distances.
        offsets: (N, axes) voxels.
    """
    shape = image.shape[2:]
    centre = (torch.tensor(shape) - 1) / 2
    start = centre - matrices @ centre + (0 if offsets is None else offsets)
    positions = beside(start, image).view(len(image), -1, *(1,) * len(shape))
    for axis, edge in enumerate(shape):
        steps = torch.arange(edge, device=image.device)
        along = [edge if axis == other else 1 for other in range(len(shape))]
        positions = positions + (beside(matrices[:, :, axis, None], image) * steps).view(len(image), -1, *along)
    if shifts is None:
        return positions
    distance = torch.tensor(shape) / (CONTROL_POINTS - 3)
    displacement = beside(((matrices * distance) @ shifts.flatten(2)).view_as(shifts).flatten(0, 1), image)
    for axis, edge in enumerate(shape):
        displacement = along_axis(displacement, spline_weights(edge, image.device)[None], axis)
    return positions.add_(displacement.view_as(positions))


def spline_weights(edge: int, device: torch.device) -> torch.Tensor:
    """(edge, points): what each control point of a uniform cubic B-spline gives to each voxel; each row sums to one."""
    spans = CONTROL_POINTS - 3
    position = (torch.arange(edge, device=device) + 0.5) * spans / edge + 1  # point 0 lies one span before the edge
    distance = (position[:, None] - torch.arange(CONTROL_POINTS, device=device)).abs()
    return torch.where(distance < 1, 2 / 3 - distance**2 + distance**3 / 2, (2 - distance).clamp_min(0) ** 3 / 6)


def sample(image: torch.Tensor, positions: torch.Tensor, mode: str) -> torch.Tensor:
    """(N, C, *shape) at `positions` (N, axes, *shape) in voxels by `bilinear` or `nearest`; 0 outside.

    Volumes are sampled as slices below one another, for on a CPU torch vectorises `grid_sample` in 2D only: twice the
    samples and one interpolation between slices take a third of the time of a 3D `grid_sample`.
    """
    if image.ndim == 4:
        return _sample_plane(image, _grid(positions[:, 0], positions[:, 1], image), mode)
    depth, height = image.shape[2:4]
    slices = functional.pad(image, (0, 0, 0, 1)).flatten(2, 3)  # a row of zeros keeps slices apart
    z, y, x = positions.flatten(3).unbind(1)
    y, z = y.clamp(-1, height), z.clamp(-1, depth)
    below = z.round() if mode == "nearest" else z.floor()
    grid = _grid(y.add_(below, alpha=height + 1), x, slices)
    lower = _sample_plane(slices, grid, mode).view(image.shape)
    if mode == "nearest":
        return lower
    grid[:, 1].add_(2 * (height + 1) / slices.shape[2])
    upper = _sample_plane(slices, grid, mode).view(image.shape)
    return lower.lerp_(upper, z.sub_(below).view(len(image), 1, *image.shape[2:]))


def _grid(row: torch.Tensor, column: torch.Tensor, plane: torch.Tensor) -> torch.Tensor:
    """Row and column (N, h, w) to grid_sample's (N, 2, h, w), from -1 to 1 across the plane, the column first."""
    height, width = plane.shape[2:]
    grid = torch.stack([column, row], dim=1)
    grid[:, 0].mul_(2 / width).add_(1 / width - 1)
    grid[:, 1].mul_(2 / height).add_(1 / height - 1)
    return grid


def _sample_plane(plane: torch.Tensor, grid: torch.Tensor, mode: str) -> torch.Tensor:
    return functional.grid_sample(plane, grid.movedim(1, -1), mode=mode, padding_mode="zeros", align_corners=False)


def mirror(image: torch.Tensor, reference: torch.Tensor, mirrors: Sequence[Mirror]) -> None:
    """Overwrite some samples with their mirror image, in which the classes that a mirror swaps have changed places."""
    for wanted in mirrors:
        flipped = drawn_samples(len(image), MIRROR_PROBABILITY)
        flip = partial(torch.flip, dims=(wanted.axis + 2,))
        overwrite(image, flipped, flip)
        overwrite(reference, flipped, flip)
        if wanted.swaps:
            overwrite(reference, flipped, partial(swap, pairs=wanted.swaps))


def swap(reference: torch.Tensor, pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Classes change places in pairs, of which there is one at least; 0 and what is in no pair stay."""
    step = torch.zeros(max(map(max, pairs)) + 2, dtype=reference.dtype)  # what a class adds to become the other
    for first, second in pairs:
        step[first], step[second] = second - first, first - second
    known = reference.clamp(0, len(step) - 1).flatten().int()
    return reference + beside(step, reference).index_select(0, known).view(reference.shape)
