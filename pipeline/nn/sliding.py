"""One prepared scan and some networks to class probabilities, window by window. The inferer is MONAI's."""

from collections.abc import Sequence
from itertools import chain, combinations

import numpy as np
import torch
from monai.inferers import sliding_window_inference

from pipeline.images import Volume
from pipeline.mirrors import Mirror
from pipeline.nn.checkpoints import Model
from pipeline.nn.device import Device
from pipeline.nn.forms import planned_form
from pipeline.nn.outputs import activate

WINDOW_VOXELS = 500_000  # computed at once


def predict_probabilities(
    models: Sequence[Model], image: Volume, device: Device, *, overlap: float, mirrors: Sequence[Mirror] = ()
) -> Volume:
    """(C, D, H, W) to (L, D, H, W): the mean over models and over the mirrored copies, in which swapped maps change back.

    2D models see the volume slice by slice. Windows are weighted by a Gaussian around their centre.
    """
    plan = models[0].plan
    batch = torch.from_numpy(np.array(image))  # a copy, for a mapped scan cannot be written to
    batch = batch.movedim(1, 0) if plan.dims == 2 else batch[None]
    total = torch.zeros(plan.num_outputs, *image.shape[1:])
    copies = mirrored_copies(mirrors)
    for model in models:
        for copy in copies:
            axes = [mirror.axis + 2 for mirror in copy]
            logits = swap_back(_window_by_window(model, batch.flip(axes), device, overlap).flip(axes), copy)
            probabilities = activate(logits.float(), plan)
            total += probabilities.movedim(0, 1) if plan.dims == 2 else probabilities[0]
    return (total / (len(models) * len(copies))).numpy()


def mirrored_copies(mirrors: Sequence[Mirror]) -> list[tuple[Mirror, ...]]:
    """Every subset of the mirrors, the empty one first."""
    return list(chain.from_iterable(combinations(mirrors, count) for count in range(len(mirrors) + 1)))


def swap_back(logits: torch.Tensor, mirrors: Sequence[Mirror]) -> torch.Tensor:
    """(B, L, …) of a copy that went through the mirrors, in their order, with each map where it belongs."""
    order = list(range(logits.shape[1]))
    for first, second in (pair for mirror in reversed(mirrors) for pair in mirror.output_swaps):
        order[first], order[second] = order[second], order[first]
    return logits[:, order] if order != sorted(order) else logits


@torch.inference_mode()
def _window_by_window(model: Model, batch: torch.Tensor, device: Device, overlap: float) -> torch.Tensor:
    plan, form = model.plan, planned_form(model.plan, model.width, device)
    network = form.prepare(model.network)

    def predictor(windows: torch.Tensor) -> torch.Tensor:
        with form.autocast(device.where):
            logits: torch.Tensor = network(windows.to(memory_format=form.layout))
        return logits.float()

    logits = sliding_window_inference(
        batch,
        roi_size=plan.patch_size,
        sw_batch_size=max(1, WINDOW_VOXELS // int(np.prod(plan.patch_size))),
        predictor=predictor,
        overlap=overlap,
        mode="gaussian",
        sw_device=device.where,
        device=torch.device("cpu"),
    )
    assert isinstance(logits, torch.Tensor)
    return logits
