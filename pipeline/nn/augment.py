"""Random changes of a whole batch at once, on the device where it lies, with torch's global random state.

Spatial changes are one resampling (rotation, scale, elastic deformation), then mirroring; intensity changes follow in
nnU-Net's order. Knows patches only, not where they come from.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

SPATIAL_PROBABILITY = 0.4  # rotation 0.2, scale 0.2 and elastic 0.2 drawn apart would touch about as many patches
MAX_ROTATION = {2: 3.1416, 3: 0.5236}  # radians; 2D slices may turn freely
FLAT_PATCH = 3  # longest edge / first edge above which a 3D patch turns in its slices only
ZOOM = (0.7, 1.4)
ELASTIC_CONTROL_POINTS = 5  # per axis
ELASTIC_SHIFT = 0.08  # standard deviation of a control point, as a fraction of the half edge


def augment(
    image: torch.Tensor, reference: torch.Tensor, mirror_axes: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Change a batch at random; every sample draws for itself.

    Args:
        image: (B, C, …), normalised.
        reference: (B, 1, …) class indices.
        mirror_axes: spatial axes, counted from 0, that may be mirrored.
    """
    image, reference = deform(image, reference)
    image, reference = mirror(image, reference, mirror_axes)
    return change_intensity(image), reference


def _chosen(batch: int, probability: float, device: torch.device) -> torch.Tensor:
    return torch.nonzero(torch.rand(batch, device=device) < probability)[:, 0]


def _uniform(count: int, low: float, high: float, like: torch.Tensor) -> torch.Tensor:
    """(count, 1, 1, …) to multiply with a batch of `like`'s number of axes."""
    values = torch.rand(count, device=like.device) * (high - low) + low
    return values.view(-1, *(1,) * (like.ndim - 1))


def deform(image: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate, scale and warp some of the samples; what comes from outside a patch is 0, the mean and the background."""
    chosen = _chosen(len(image), SPATIAL_PROBABILITY, image.device)
    if not len(chosen):
        return image, reference
    grid = deformation_grid(len(chosen), tuple(image.shape[2:]), image.device)
    image, reference = image.clone(), reference.clone()
    image[chosen] = functional.grid_sample(image[chosen], grid, mode="bilinear", align_corners=False)
    warped = functional.grid_sample(reference[chosen].float(), grid, mode="nearest", align_corners=False)
    reference[chosen] = warped.to(reference.dtype)
    return image, reference


def deformation_grid(count: int, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """(count, *shape, dims): where each voxel is sampled from, in grid_sample's coordinates (-1 to 1, last axis first)."""
    dims = len(shape)
    half_edge = torch.tensor(shape[::-1], device=device, dtype=torch.float32) / 2
    matrix = _rotations(count, shape, device) * _uniform(count, *ZOOM, like=torch.empty(1, 1, 1, device=device))
    in_voxels = matrix * half_edge / half_edge[:, None]  # rotate voxels, not the stretched unit cube
    affine = torch.cat([in_voxels, torch.zeros(count, dims, 1, device=device)], dim=2)
    grid = functional.affine_grid(affine, [count, 1, *shape], align_corners=False)
    points = torch.randn(count, dims, *(ELASTIC_CONTROL_POINTS,) * dims, device=device) * ELASTIC_SHIFT
    points *= (torch.rand(count, device=device) < 0.5).view(-1, *(1,) * (dims + 1))
    mode = "bilinear" if dims == 2 else "trilinear"
    shift = functional.interpolate(points, size=shape, mode=mode, align_corners=True)
    return grid + shift.movedim(1, -1)


def _rotations(count: int, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """(count, dims, dims) in grid_sample's axis order, which is the reverse of the array's."""
    dims = len(shape)
    is_flat = dims == 3 and max(shape) / shape[0] > FLAT_PATCH
    rotation = torch.eye(dims, device=device).expand(count, dims, dims)
    planes = [(0, 1)] if dims == 2 or is_flat else [(0, 1), (0, 2), (1, 2)]
    limit = MAX_ROTATION[2 if len(planes) == 1 else 3]
    for first, second in planes:
        angle = (torch.rand(count, device=device) * 2 - 1) * limit
        turn = torch.eye(dims, device=device).repeat(count, 1, 1)
        turn[:, first, first] = turn[:, second, second] = angle.cos()
        turn[:, first, second], turn[:, second, first] = -angle.sin(), angle.sin()
        rotation = rotation @ turn
    return rotation


def mirror(image: torch.Tensor, reference: torch.Tensor, axes: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Flip each sample along each of the spatial axes with probability one half."""
    for axis in axes:
        is_flipped = (torch.rand(len(image), device=image.device) < 0.5).view(-1, *(1,) * (image.ndim - 1))
        image = torch.where(is_flipped, image.flip(axis + 2), image)
        reference = torch.where(is_flipped, reference.flip(axis + 2), reference)
    return image, reference


def change_intensity(image: torch.Tensor) -> torch.Tensor:
    """Noise, blur, brightness, contrast, low resolution and gamma, each on its own share of the samples."""
    image = image.clone()
    changes = ((add_noise, 0.1), (blur, 0.2), (brighten, 0.15), (stretch, 0.15), (coarsen, 0.25), (bend, 0.3))
    for change, probability in changes:
        chosen = _chosen(len(image), probability, image.device)
        if len(chosen):
            image[chosen] = change(image[chosen])
    return image


def add_noise(image: torch.Tensor) -> torch.Tensor:
    return image + torch.randn_like(image) * _uniform(len(image), 0, 0.1, image).sqrt()


def blur(image: torch.Tensor) -> torch.Tensor:
    """Gaussian of 0.5 to 1 voxels, one width for all chosen samples."""
    sigma = float(torch.rand(()) * 0.5 + 0.5)
    offsets = torch.arange(-3, 4, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels, dims = image.shape[1], image.ndim - 2
    convolve = functional.conv3d if dims == 3 else functional.conv2d
    for axis in range(dims):
        sizes = [7 if other == axis else 1 for other in range(dims)]
        pad = [part for other in reversed(range(dims)) for part in ((3, 3) if other == axis else (0, 0))]
        weight = kernel.view(1, 1, *sizes).expand(channels, 1, *sizes)
        image = convolve(functional.pad(image, pad, mode="replicate"), weight, groups=channels)
    return image


def brighten(image: torch.Tensor) -> torch.Tensor:
    return image * _uniform(len(image), 0.75, 1.25, image)


def stretch(image: torch.Tensor) -> torch.Tensor:
    """Contrast around each channel's mean, kept within its range."""
    low, high, mean = _range_and_mean(image)
    return ((image - mean) * _uniform(len(image), 0.75, 1.25, image) + mean).clamp(low, high)


def coarsen(image: torch.Tensor) -> torch.Tensor:
    """As if scanned with 1 to 2 times the voxel size, one factor for all chosen samples."""
    zoom = float(torch.rand(()) * 0.5 + 0.5)
    small = [max(1, round(edge * zoom)) for edge in image.shape[2:]]
    mode = "trilinear" if image.ndim == 5 else "bilinear"
    reduced = functional.interpolate(image, size=small, mode="nearest-exact")
    return functional.interpolate(reduced, size=image.shape[2:], mode=mode)


def bend(image: torch.Tensor) -> torch.Tensor:
    """Gamma of 0.7 to 1.5 on the range of each channel, half of the samples inverted; mean and deviation are kept."""
    sign = 1 - 2 * (_uniform(len(image), 0, 1, image) < 0.25).to(image.dtype)
    image = image * sign
    axes = tuple(range(2, image.ndim))
    low, high, mean = _range_and_mean(image)
    std = image.std(dim=axes, keepdim=True)
    spread = (high - low).clamp_min(1e-7)
    bent = ((image - low) / spread).clamp(0, 1) ** _uniform(len(image), 0.7, 1.5, image) * spread + low
    bent_std = bent.std(dim=axes, keepdim=True).clamp_min(1e-7)
    return ((bent - bent.mean(dim=axes, keepdim=True)) / bent_std * std + mean) * sign


def _range_and_mean(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    axes = tuple(range(2, image.ndim))
    return image.amin(dim=axes, keepdim=True), image.amax(dim=axes, keepdim=True), image.mean(dim=axes, keepdim=True)
