"""One prepared scan and some networks to probabilities, window by window and slab by slab.

Windows go down the first axis. As soon as no further window reaches a slab it is finished and handed over, and its memory
serves the next one: what a scan takes depends on the length of a window, not on that of the scan. Knows no files.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise, product
from math import prod
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.errors import PredictionError
from pipeline.images import Volume
from pipeline.mirrors import Mirror
from pipeline.nn.augment.spatial import swap
from pipeline.nn.checkpoints import Model
from pipeline.nn.device import Device
from pipeline.nn.forms import prediction_form
from pipeline.nn.outputs import activate
from pipeline.nn.patches import cut
from pipeline.plan import Plan
from pipeline.windows import Window, num_at_once, window_starts

SIGMA = 1 / 8  # of a window's edge, of the Gaussian that weighs its voxels; nnU-Net's and MONAI's
SHARE_OF_DEVICE = 0.5  # of a GPU's free memory, that the scan and the sum over windows may take


@torch.inference_mode()
def predict_slabs(
    models: Sequence[Model], image: Volume, device: Device, window: Window
) -> Iterator[NDArray[np.float32]]:
    """(C, D, H, W) to finished slabs (L, d, H, W) in order: the mean over windows, mirrored copies and models.

    A slab is valid until the next one is asked for. One network's outputs are averaged before they become probabilities;
    of several networks the probabilities are. 2D networks get slices. Zeros surround a scan smaller than a window.

    Raises:
        PredictionError: the output is not finite (the likeliest class of NaN would be a plausible background), or there is
            no memory for a single window.
    """
    plan, shape = models[0].plan, image.shape[1:]
    size = window.size
    num_windows = window.batch or num_at_once(size, device.where.type)
    if plan.dims == 2:  # as many slices as go into one call are a window, whose slices weigh the same
        size, num_windows = (min(num_windows, shape[0]), *size), 1
    profiles = [gaussian(edge) if plan.dims == 3 or axis else torch.ones(edge) for axis, edge in enumerate(size)]
    padded = tuple(max(edge, own) for edge, own in zip(size, shape, strict=True))
    margins = [(edge - own) // 2 for edge, own in zip(padded, shape, strict=True)]
    inside = tuple(slice(margin, margin + own) for margin, own in zip(margins, shape, strict=True))
    overlaps = (window.overlap if plan.dims == 3 else 0, window.overlap, window.overlap)
    starts = [window_starts(*axis) for axis in zip(padded, size, overlaps, strict=True)]
    sums = [sum_of(profile, at, edge) for profile, at, edge in zip(profiles, starts, padded, strict=True)]

    num_bytes = 4 * (plan.num_outputs * size[0] * prod(padded[1:]) + image.size)
    is_roomy = device.where.type == "cpu" or num_bytes < SHARE_OF_DEVICE * device.free_bytes
    where = device.where if is_roomy else torch.device("cpu")
    volume = torch.from_numpy(image).to(where)
    total = torch.zeros(plan.num_outputs, size[0], *padded[1:], device=where)
    weights = outer(profiles).to(where)
    networks = [caller(model, device, window) for model in models]
    places = list(product(starts[1], starts[2], window.copies))

    for first, following in pairwise([*starts[0], padded[0]]):
        for begin in range(0, len(places), num_windows):
            group = places[begin : begin + num_windows]
            windows = [mirrored(cut(volume, (first, *at), size), copy, plan) for *at, copy in group]
            for network in networks:
                outputs = network(windows)
                if len(networks) > 1:
                    outputs = activate(outputs, plan)
                maps = [outputs.movedim(0, 1)] if plan.dims == 2 else outputs.unbind()
                for output, (line, column, copy) in zip(maps, group, strict=True):
                    if copy:  # `flip` copies even for nothing, and outputs are large
                        output = swap_back(output.flip(flipped_axes(copy, plan)), copy)
                    part = total[..., line : line + size[1], column : column + size[2]]
                    part.addcmul_(output.to(where), weights)
                del outputs, maps, output  # before the network makes the next
        num_rows = following - first
        finished = total[:, :num_rows]
        finished /= outer([len(networks) * len(window.copies) * sums[0][first:following], *sums[1:]]).to(where)
        if not torch.isfinite(finished.sum()):
            raise PredictionError("the network's output is not finite, so no mask is written. Check scan and weights.")
        if len(networks) == 1:
            for row in finished.unbind(1):  # a copy of one row at a time
                row.copy_(activate(row[None], plan)[0])
        rows = inside[0] if len(starts[0]) == 1 else slice(None)
        yield finished[:, rows, inside[1], inside[2]].cpu().numpy()
        num_left = size[0] - num_rows  # rows that later windows add to move to the front
        for begin in range(0, num_left, num_rows):
            end = min(begin + num_rows, num_left)
            total[:, begin:end] = total[:, begin + num_rows : end + num_rows]
        total[:, num_left:] = 0


def caller(model: Model, device: Device, window: Window) -> Callable[[Sequence[torch.Tensor]], torch.Tensor]:
    """A function from windows (C, d, h, w) to logits (B, L, d, h, w) in float32; in 2D from one to (d, L, h, w)."""
    form = prediction_form(model.plan, model.width, device, is_compiled=window.is_compiled)
    prepared = form.prepare(model.network)
    options: Callable[[], AbstractContextManager[None]] = nullcontext
    if window.is_compiled:
        from torch._inductor import config  # takes a second

        prepared = cast(nn.Module, torch.compile(prepared, dynamic=False))
        options = partial(
            config.patch, freezing=True
        )  # weights as constants; `torch.compile` does not take this option

    def compute(batch: torch.Tensor) -> torch.Tensor:
        """In halves where the memory asks for it."""
        try:
            with form.autocast(device.where), options():
                logits: torch.Tensor = prepared(batch)
                return logits.float()
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise PredictionError(
                    f"{device}: out of memory with a single window. Set a smaller `predict.window`."
                ) from None
        torch.cuda.empty_cache()
        return torch.cat([compute(half) for half in batch.chunk(2)])

    def call(windows: Sequence[torch.Tensor]) -> torch.Tensor:
        batch = windows[0].movedim(1, 0) if model.plan.dims == 2 else torch.stack(list(windows))
        return compute(batch.to(device.where).to(memory_format=form.layout))

    return call


def gaussian(size: int) -> torch.Tensor:
    """(size,) around the centre, 1 at most."""
    distance = (torch.arange(size) - (size - 1) / 2) / (SIGMA * size)
    return torch.exp(-0.5 * distance**2)


def sum_of(profile: torch.Tensor, starts: Sequence[int], edge: int) -> torch.Tensor:
    """(edge,) what the windows from `starts` on add up to along one axis; windows are a grid, so axes do not mix."""
    total = torch.zeros(edge)
    for start in starts:
        total[start : start + len(profile)] += profile
    return total


def outer(profiles: Sequence[torch.Tensor]) -> torch.Tensor:
    """(D,), (H,) and (W,) to their product (D, H, W)."""
    depth, height, width = profiles
    return depth[:, None, None] * height[:, None] * width


def mirrored(window: torch.Tensor, mirrors: Sequence[Mirror], plan: Plan) -> torch.Tensor:
    """(C, d, h, w) as seen in the mirrors; classes of the mask in a cascade's last channel change sides as in training."""
    window = window.flip(flipped_axes(mirrors, plan))
    for pairs in (mirror.swaps for mirror in mirrors if plan.previous and mirror.swaps):
        window[-1] = swap(window[-1], pairs)  # of a copy, which `flip` always makes
    return window


def flipped_axes(copy: Sequence[Mirror], plan: Plan) -> list[int]:
    """Of (C, d, h, w): a mirror counts from the first axis of a patch, which 2D plans do not have the first of."""
    return [mirror.axis - plan.dims for mirror in copy]


def swap_back(maps: torch.Tensor, mirrors: Sequence[Mirror]) -> torch.Tensor:
    """(L, …) of a copy that went through the mirrors, in their order, with each map where it belongs."""
    order = list(range(len(maps)))
    for first, second in (pair for mirror in reversed(mirrors) for pair in mirror.output_swaps):
        order[first], order[second] = order[second], order[first]
    return maps[order] if order != sorted(order) else maps
