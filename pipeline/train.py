"""One fold of one configuration to weights: reads straight down, saves as it goes, and goes on where it was killed.

Every random number is a function of seed, fold and step, so a resumed run draws what the unbroken one would have drawn.
"""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from pipeline import errors, records
from pipeline.budget import Budget, fit_budget
from pipeline.errors import TrainingError
from pipeline.nn.augment import augment
from pipeline.nn.checkpoints import load_checkpoint, save_checkpoint, save_model
from pipeline.nn.device import Device, channels_last, pick_device
from pipeline.nn.losses import Loss, make_loss
from pipeline.nn.networks import build_network
from pipeline.nn.outputs import count_voxels
from pipeline.nn.patches import PatchSource, draw_batch, open_sources
from pipeline.paths import Results
from pipeline.plan import Plan, mirror_axes, read_plan

PROGRESS = ("step", "elapsed_s", "learning_rate", "train_loss", "validation_loss", "validation_dsc")
NUM_VALIDATIONS = 20
VALIDATION_PATCHES = 16
WARM_UP = 0.05  # of the budget, while the learning rate rises to its peak
SAVING_SHARE = 0.05  # of the time, at most, goes into checkpoints
SMALLEST_SAVE_INTERVAL_S = 10.0
GRADIENT_NORM = 12.0


def main(
    results: str, configuration: str, fold: int, settings: str, device: str = "auto", seed: int = 0, threads: int = 1
) -> None:
    files = Results(results)
    torch.set_num_threads(threads)
    plan = read_plan(files.plan(configuration))
    cases = [case for case in records.read_cases(files.cases) if case.label]
    for shard in sorted({case.fold for case in cases}):
        records.verify_file_list(files.preprocessed(configuration, shard))
    folders = {case.case: files.arrays(configuration, case.case) for case in cases}
    free_bytes = psutil.virtual_memory().available
    weights, width = train(
        plan,
        json.loads(settings),
        pick_device(device),
        training=open_sources([folders[case.case] for case in cases if case.fold != fold], free_bytes),
        validation=open_sources([folders[case.case] for case in cases if case.fold == fold], free_bytes),
        seed=(seed, fold),
        folder=files.training(configuration, fold),
    )
    save_model(files.model(configuration, fold), weights, width, files.plan(configuration))


def train(
    plan: Plan,
    settings: dict[str, Any],
    device: Device,
    *,
    training: list[PatchSource],
    validation: list[PatchSource],
    seed: tuple[int, int],
    folder: Path,
) -> tuple[dict[str, torch.Tensor], int]:
    """The trained weights and the width of the network they fit; checkpoint, progress and events stay in `folder`.

    Raises:
        TrainingError: no case to train on, or the loss is not finite.
    """
    if not training:
        raise TrainingError(f"{folder}: no labelled case is outside this fold. Reduce `folds` or add cases.")
    budget = fit_budget(plan, settings)
    print(f"device: {device}\nbudget: {budget.reason}", flush=True)

    torch.manual_seed(step_seed(*seed, step=0))
    network = build_network(plan, budget.width).to(device.where)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings["learning_rate"], weight_decay=settings["weight_decay"]
    )
    measure = make_loss(settings, plan)
    step, elapsed_s, rows = 0, 0.0, []
    key = training_key(plan, settings, seed, [source.case for source in training])
    checkpoint = folder / "checkpoint.pt"
    if saved := load_checkpoint(checkpoint, key):
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        step, elapsed_s, rows = saved["step"], saved["elapsed_s"], saved["rows"]
        print(f"resumed: {checkpoint} at step {step} after {elapsed_s:.0f} s of training", flush=True)

    last_save = time.monotonic()
    begin = last_save - elapsed_s
    save_interval_s = SMALLEST_SAVE_INTERVAL_S
    losses: list[torch.Tensor] = []
    with SummaryWriter(str(folder / "tensorboard"), purge_step=step) as events, progress_bar(plan, seed, budget) as bar:
        while (progress := budget.progress(step, elapsed_s)) < 1:
            rate = settings["learning_rate"] * learning_rate_factor(progress)
            for group in optimizer.param_groups:
                group["lr"] = rate

            torch.manual_seed(step_seed(*seed, step=step))
            random = np.random.default_rng((*seed, step))
            image, reference = draw_batch(training, plan.patch_size, budget.batch_size, settings["foreground"], random)
            image, reference = image.to(device.where), reference.to(device.where)
            if settings["augment"]:
                image, reference = augment(image, reference, mirror_axes(plan, settings["mirror"]))
            loss = loss_of(network.train(), image, reference, plan, device, measure)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
            optimizer.step()
            losses.append(loss.detach())

            step, elapsed_s = step + 1, time.monotonic() - begin
            after = budget.progress(step, elapsed_s)
            bar.update(after * 100 - bar.n)
            if int(after * NUM_VALIDATIONS) > int(progress * NUM_VALIDATIONS):
                train_loss = float(torch.stack(losses).mean())
                losses.clear()
                if not np.isfinite(train_loss):
                    raise TrainingError(
                        f"{folder}: the loss is {train_loss} at step {step}. Lower `train.learning_rate`."
                    )
                validation_loss, validation_dsc = validate(network, validation, plan, budget, device, seed, measure)
                row = (step, round(elapsed_s, 2), rate, train_loss, validation_loss, validation_dsc)
                rows.append(dict(zip(PROGRESS, row, strict=True)))
                records.write_table(folder / "progress.tsv", PROGRESS, rows)
                for name, value in zip(PROGRESS[2:], row[2:], strict=True):
                    if value is not None:
                        events.add_scalar(name, value, step)
                bar.set_postfix(loss=f"{train_loss:.3f}", validation_dsc=f"{validation_dsc or 0:.3f}", refresh=False)
                elapsed_s = time.monotonic() - begin
            if time.monotonic() - last_save > save_interval_s:
                last_save = time.monotonic()
                state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
                save_checkpoint(checkpoint, key, {**state, "step": step, "elapsed_s": elapsed_s, "rows": rows})
                save_interval_s = max(SMALLEST_SAVE_INTERVAL_S, (time.monotonic() - last_save) / SAVING_SHARE)
    print(f"trained: {step} steps in {elapsed_s:.0f} s", flush=True)
    return network.state_dict(), budget.width


def step_seed(seed: int, fold: int, *, step: int) -> int:
    """A seed for torch that depends on all three numbers."""
    return int(np.random.SeedSequence((seed, fold, step)).generate_state(1, np.uint64)[0] >> 1)


def training_key(plan: Plan, settings: dict[str, Any], seed: tuple[int, int], cases: list[str]) -> str:
    """Two runs with the same key may continue each other."""
    return hashlib.sha256(json.dumps([repr(plan), settings, seed, cases], sort_keys=True).encode()).hexdigest()


def learning_rate_factor(progress: float) -> float:
    """From 0 to 1 during the warm-up, then down a polynomial of power 0.9 to 0."""
    return min(progress / WARM_UP, ((1 - progress) / (1 - WARM_UP)) ** 0.9) + 1e-3


def progress_bar(plan: Plan, seed: tuple[int, int], budget: Budget) -> tqdm:
    return tqdm(
        total=100,
        desc=f"train {plan.configuration} fold {seed[1]}",
        unit="%",
        bar_format="{desc}: {percentage:3.0f}% |{bar:20}| {elapsed}<{remaining}{postfix}",
        mininterval=5,
    )


def loss_of(
    network: torch.nn.Module, image: torch.Tensor, reference: torch.Tensor, plan: Plan, device: Device, measure: Loss
) -> torch.Tensor:
    with device.precision():
        logits = network(image.to(memory_format=channels_last(plan.dims)))
    return measure(logits, reference)


@torch.no_grad()
def validate(
    network: torch.nn.Module,
    sources: list[PatchSource],
    plan: Plan,
    budget: Budget,
    device: Device,
    seed: tuple[int, int],
    measure: Loss,
) -> tuple[float | None, float | None]:
    """Loss, and mean DSC of the labels found in the same held-out patches each time; (None, None) without cases."""
    if not sources:
        return None, None
    random = np.random.default_rng(seed)
    losses, overlap, sizes = [], np.zeros(plan.num_outputs), np.zeros(plan.num_outputs)
    network.eval()
    for _ in range(max(1, VALIDATION_PATCHES // budget.batch_size)):
        image, reference = draw_batch(sources, plan.patch_size, budget.batch_size, 1.0, random)
        image, reference = image.to(device.where), reference.to(device.where)
        with device.precision():
            logits = network(image.to(memory_format=channels_last(plan.dims)))
        losses.append(float(measure(logits, reference)))
        right, found, wanted = count_voxels(logits, reference, plan)
        overlap += right
        sizes += found + wanted
    first = 0 if plan.regions else 1
    seen = np.flatnonzero(sizes[first:]) + first
    dsc = float(np.mean(2 * overlap[seen] / sizes[seen])) if seen.size else None
    return float(np.mean(losses)), dsc


if __name__ == "__main__":
    errors.run(main)
