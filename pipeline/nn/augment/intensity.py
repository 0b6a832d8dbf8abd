"""Noise, blur, brightness, contrast, low resolution and gamma: nnU-Net's probabilities and ranges, batched.

Each change is a function of explicit parameters on (N, …), one item per channel or per sample, and overwrites nothing;
`change_intensity` draws the parameters and writes into its batch.
"""

import math

import torch

from pipeline.nn.augment.axes import along_axis, is_flat
from pipeline.nn.augment.draws import (
    around_one,
    beside,
    drawn_channels,
    drawn_samples,
    overwrite,
    per_item,
    uniform,
)

LARGEST_VARIANCE = 0.1
BLUR_SIGMA = (0.5, 1.0)  # voxels
BLUR_RADIUS = 4  # voxels; four times the widest sigma
BRIGHTNESS = (0.75, 1.25)
CONTRAST = (0.75, 1.25)
ZOOM = (0.5, 1.0)
GAMMA = (0.7, 1.5)
SMALLEST_RANGE = 1e-7


def change_intensity(image: torch.Tensor) -> None:
    """Overwrite (B, C, …) with a changed batch."""
    channels = image.flatten(0, 1)

    def choose(probability: float, channel_probability: float = 1.0) -> torch.Tensor:
        return drawn_channels(len(image), image.shape[1], probability, channel_probability)

    chosen = drawn_samples(len(image), 0.1)
    overwrite(image, chosen, add_noise, uniform((len(chosen),), 0, LARGEST_VARIANCE).sqrt())
    chosen = choose(0.2, 0.5)
    overwrite(channels, chosen, blur, uniform((len(chosen), image.ndim - 2), *BLUR_SIGMA))
    chosen = choose(0.15)
    overwrite(channels, chosen, brighten, around_one(len(chosen), *BRIGHTNESS))
    chosen = choose(0.15)
    overwrite(channels, chosen, stretch, around_one(len(chosen), *CONTRAST))
    chosen = choose(0.25, 0.5)
    overwrite(channels, chosen, coarsen, uniform((len(chosen),), *ZOOM))
    chosen = choose(0.1)
    overwrite(channels, chosen, bend_inverted, around_one(len(chosen), *GAMMA))
    chosen = choose(0.3)
    overwrite(channels, chosen, bend, around_one(len(chosen), *GAMMA))


def add_noise(image: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Gaussian noise of a standard deviation (N,), another value for every voxel."""
    return torch.randn_like(image).mul_(per_item(sigma, image)).add_(image)


def blur(image: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Gaussian of `sigma` (N, axes) voxels; the outermost voxels go on beyond the edge."""
    offsets = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1)
    weights = torch.exp(-0.5 * (offsets / sigma[..., None]) ** 2)
    weights = beside(weights / weights.sum(-1, keepdim=True), image)
    for axis, edge in enumerate(image.shape[1:]):
        position = torch.arange(edge, device=image.device)
        source = (position + beside(offsets, image)[:, None]).clamp(0, edge - 1)
        selection = (source[..., None] == position).to(image.dtype)  # (offset, to, from)
        image = along_axis(image, torch.einsum("no,oij->nij", weights[:, axis], selection), axis)
    return image


def brighten(image: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return image * per_item(factor, image)


def stretch(image: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Contrast times `factor` (N,) around the mean, kept within the range."""
    values = image.flatten(1)
    low, high = _range(values)
    factor = per_item(factor, values)
    offset = (1 - factor) * values.mean(dim=1, keepdim=True)
    stretched = (values * factor).add_(offset)
    return stretched.maximum(low).minimum(high).view(image.shape)


def coarsen(image: torch.Tensor, zoom: torch.Tensor) -> torch.Tensor:
    """As if scanned with `zoom` (N,) times the voxels along each axis: the nearest voxel, then linear interpolation.

    A flat patch keeps its slices.
    """
    zoom = per_item(zoom, image.flatten(1))
    for axis in range(int(is_flat(image.shape[1:])), image.ndim - 1):
        edge = image.shape[axis + 1]
        position = torch.arange(edge, device=image.device)
        reduced = (edge * zoom).round().clamp_min(1)
        low = ((position + 0.5) * reduced / edge - 0.5).clamp_min(0)
        share = low.frac()[..., None]
        steps = torch.stack([low.floor(), torch.minimum(low.floor() + 1, reduced - 1)])
        source = ((steps + 0.5) * edge / reduced).floor()  # of each coarse voxel, the one in its middle
        near, far = (source[..., None] == position).to(image.dtype)
        image = along_axis(image, torch.lerp(near, far, share), axis)
    return image


def bend_inverted(image: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    return bend(-image, gamma).neg_()


def bend(image: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """The power `gamma` (N,) on the range of each item, whose mean and standard deviation are kept."""
    values = image.flatten(1)
    low, high = _range(values)
    mean, deviation = _mean_and_deviation(values)
    # exp(gamma log x) takes a quarter of the time of x ** gamma; 0 stays 0 through log's -inf
    bent = (values - low).div_((high - low).clamp_min(SMALLEST_RANGE)).log_().mul_(per_item(gamma, values)).exp_()
    bent_mean, bent_deviation = _mean_and_deviation(bent)
    ratio = deviation / bent_deviation.clamp_min(SMALLEST_RANGE)
    return bent.sub_(bent_mean).mul_(ratio).add_(mean).view(image.shape)


def _range(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each (N, 1). `aminmax` along an axis takes ten times as long."""
    return values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)


def _mean_and_deviation(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each (N, 1). `std` takes many times as long as a norm."""
    mean = values.mean(dim=1, keepdim=True)
    return mean, torch.linalg.vector_norm(values - mean, dim=1, keepdim=True) / math.sqrt(values.shape[1] - 1)
