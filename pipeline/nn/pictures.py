"""What a network sees and does, as pictures: patches before and after augmentation, predictions, skip connections.

Chooses what to show and leaves drawing to `figures`. Changes neither the network nor any random number of a training.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from pipeline import figures
from pipeline.figures import Picture
from pipeline.mirrors import Mirror
from pipeline.nn.augment import Options, augment
from pipeline.nn.device import Device
from pipeline.nn.forms import Form
from pipeline.nn.outputs import found_masks, masks_of
from pipeline.nn.patches import Batch, PatchSource, draw_batch
from pipeline.nn.skips import Joint, finest_first, watched
from pipeline.plan import Plan

NUM_EXAMPLES = 2
PICTURED_VALIDATIONS = (1, 5, 10, 20)
PICTURED_CHANNELS = 6  # of each skip connection
PICTURED_PATCHES = 6  # before and after augmentation


def draw_examples(
    sources: Sequence[PatchSource], patch_size: Sequence[int], seed: Sequence[int], device: Device
) -> Batch:
    """A few labelled patches to look at, the same whenever a training starts or goes on."""
    image, reference = draw_batch(sources, patch_size, NUM_EXAMPLES, NUM_EXAMPLES, np.random.default_rng(seed))
    return image.to(device.where), reference.to(device.where)


def log_pictures(
    events: SummaryWriter,
    step: int,
    network: torch.nn.Module,
    image: torch.Tensor,
    reference: torch.Tensor,
    plan: Plan,
    form: Form,
) -> None:
    """To TensorBoard: the first patch with outlines of reference and prediction, and some channels of every skip."""
    maps: dict[Joint, torch.Tensor] = {}

    def keep(joint: Joint, skip: torch.Tensor) -> torch.Tensor:
        maps[joint] = middle(skip[:, :PICTURED_CHANNELS].float())[0]
        return skip

    outputs = watched(network, image[:1], form, keep)
    tiles = result_tiles(middle(image[:1]), middle(reference[:1]), middle(outputs), plan)
    events.add_image("prediction", figures.arrange([tiles]), step, dataformats="HWC")
    if maps:
        rows = [[figures.tile(one.numpy()) for one in maps[joint]] for joint in finest_first(maps)]
        events.add_image("skips", figures.arrange(rows), step, dataformats="HWC")


def middle(batch: torch.Tensor) -> torch.Tensor:
    """(B, C, D, H, W) to its middle slices (B, C, H, W) on the CPU; (B, C, H, W) is its own."""
    return (batch[:, :, batch.shape[2] // 2] if batch.ndim == 5 else batch).cpu()


def result_tiles(image: torch.Tensor, reference: torch.Tensor, outputs: torch.Tensor, plan: Plan) -> list[Picture]:
    """The first slice with outlines; in a regression, image, reference and output beside each other."""
    if plan.task == "regression":
        return [figures.tile(one[0, 0].float().numpy()) for one in (image, reference, outputs)]
    masks = [outlined(masks_of(reference, plan), plan), outlined(found_masks(outputs, plan), plan)]
    return [figures.tile(image[0, 0].numpy(), reference=masks[0][0], prediction=masks[1][0])]


def outlined(masks: torch.Tensor, plan: Plan) -> NDArray[np.bool_]:
    """(B, L, H, W) to (B, K, H, W): the regions, or all labels but the background; none in a regression."""
    first = len(masks[0]) if plan.task == "regression" else 0 if plan.regions else 1
    return masks[:, first:].numpy()


def augmented_sheet(
    sources: Sequence[PatchSource],
    patch_size: Sequence[int],
    plan: Plan,
    options: Options,
    mirrors: Sequence[Mirror],
    seed: Sequence[int],
) -> bytes:
    """PNG of some training patches with the outlines of their labels: as they are, and below as the network sees them."""
    image, reference = draw_batch(sources, patch_size, PICTURED_PATCHES, PICTURED_PATCHES, np.random.default_rng(seed))
    image, reference = image.cpu(), reference.cpu()  # where random numbers can be put back
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed[0])
        changed, moved = augment(image, reference, options, mirrors)
    masks = [outlined(masks_of(middle(part), plan), plan) for part in (reference, moved)]
    return figures.before_and_after(middle(image).numpy(), middle(changed).numpy(), *masks)
