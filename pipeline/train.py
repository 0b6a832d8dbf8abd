"""One fold of one configuration to weights: reads straight down, saves as it goes, and goes on where it was killed.

Every random number is a function of seed, fold, process and step, so a resumed run draws what the unbroken one would
have drawn. Started by `torchrun`, several processes train together.
"""

import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from pipeline import disk, errors, records
from pipeline.budget import Budget, fit_budget
from pipeline.errors import TrainingError
from pipeline.limits import free_bytes
from pipeline.mirrors import find_mirrors
from pipeline.nn.alarms import Alarms, Validation
from pipeline.nn.augment import augment, read_options
from pipeline.nn.checkpoints import (
    exclusive,
    load_checkpoint,
    load_pretrained,
    save_checkpoint,
    save_model,
    training_key,
)
from pipeline.nn.device import Device, pick_device
from pipeline.nn.forms import Form, choose_form, named_form, planned_form
from pipeline.nn.losses import Loss, make_loss
from pipeline.nn.networks import build_network
from pipeline.nn.outputs import count_voxels
from pipeline.nn.patches import Batch, PatchSource, batches, draw_batch, foreground_patches, open_sources
from pipeline.nn.pictures import PICTURED_VALIDATIONS, augmented_sheet, draw_examples, log_pictures
from pipeline.nn.skips import skip_rows
from pipeline.nn.stepper import Stepper
from pipeline.nn.stop import StopRequest
from pipeline.nn.workers import ALONE, Workers, join_workers, leave_workers
from pipeline.paths import Results
from pipeline.plan import Plan, read_plan
from pipeline.records import TrainingFacts

PROGRESS = ("step", "elapsed_s", "learning_rate", "train_loss", "validation_loss", "validation_dsc")
NUM_VALIDATIONS = 20
VALIDATION_PATCHES = 16
WARM_UP = 0.05  # of the budget, while the learning rate rises to its peak
SAVING_SHARE = 0.05  # of the time, at most, goes into checkpoints
SMALLEST_SAVE_INTERVAL_S = 10.0
STEP_MARGIN = 1.2  # of the memory of a step as measured, that the cohort must leave to it
LEFT_BEHIND = ("progress.tsv", "augmented.png", "skips.tsv", "training.json")  # for the report


def main(
    results: str, configuration: str, fold: int, settings: str, device: str = "auto", seed: int = 0, threads: int = 1
) -> None:
    files, wanted = Results(results), json.loads(settings)
    plan = read_plan(files.plan(configuration))
    cases = records.read_cases(files.checked_cases)
    shards = {shard: files.preprocessed(configuration, shard) for shard in sorted({case.fold for case in cases})}
    for shard in shards.values():
        records.verify_file_list(shard)
    folders = {
        side: [
            files.arrays(configuration, case.case) for case in cases if (case.fold == fold) == (side == "validation")
        ]
        for side in ("training", "validation")
    }
    processor = pick_device(device, is_deterministic=wanted["deterministic"])
    workers, where = join_workers(processor.where)
    processor = replace(processor, where=where)
    torch.set_num_threads(max(1, threads // workers.count))
    memory_bytes = free_bytes() // workers.count
    room_bytes = processor.free_bytes - int(STEP_MARGIN * (plan.memory_measured_gib or 0) * 2**30)
    folder = files.training(configuration, fold)
    with disk.on_disk(folder), exclusive(folder) if workers.is_first else nullcontext():
        weights, width = train(
            plan,
            wanted,
            processor,
            training=open_sources(folders["training"], memory_bytes, where, room_bytes),
            validation=open_sources(folders["validation"], memory_bytes, where, room_bytes),
            seed=(seed, fold),
            folder=folder,
            workers=workers,
            data=[records.sha256(path) for shard, path in shards.items() if shard != fold],
        )
        if workers.is_first:
            save_model(files.model(configuration, fold), weights, width, plan)
    leave_workers(workers)


def train(
    plan: Plan,
    settings: dict[str, Any],
    device: Device,
    *,
    training: list[PatchSource],
    validation: list[PatchSource],
    seed: tuple[int, int],
    folder: Path,
    workers: Workers = ALONE,
    data: Sequence[str] = (),
) -> tuple[dict[str, torch.Tensor], int]:
    """The trained weights and the width of the network they fit; checkpoint, progress and events stay in `folder`.

    A checkpoint of other `data`, digests of what is trained on, is not resumed; a finished one gives its weights again.

    Raises:
        TrainingError: no case to train on, gradients that are never finite, or no memory for one patch.
        SystemExit: a signal asked to stop; the state is saved.
    """
    if not training:
        raise TrainingError(f"{folder}: no labelled case is outside this fold. Reduce `folds` or add cases.")
    budget = fit_budget(plan, settings)
    share = workers.share(budget.batch_size)

    def log(line: str) -> None:
        if workers.is_first:
            print(line, flush=True)

    log(f"device: {device}, {workers.count} process(es)\nbudget: {budget.reason}")

    key = training_key(plan, budget, settings, seed, [*data, *(source.case for source in training)])
    checkpoint = folder / "checkpoint.pt"
    saved = load_checkpoint(checkpoint, key)
    torch.manual_seed(step_seed(*seed, step=0))
    network = build_network(plan, budget.width).to(device.where)
    if settings["pretrained"] and not saved:
        log(load_pretrained(network, Path(settings["pretrained"])))
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(settings["ema"])) if settings["ema"] else None
    final = averaged.module if averaged else network
    measure = make_loss(settings, plan)
    options = read_options(settings, mask_classes=len(plan.labels) if plan.previous else 0)
    mirrors = find_mirrors(plan, settings["mirror"])
    if saved:
        form, reason = named_form(saved["form"]), "as before"
    elif workers.count > 1:  # a clock of its own in each process could choose differently
        form, reason = planned_form(plan, budget.width, device), "as planned"
    else:
        form, reason = choose_form(plan, budget, settings, device)
    log(f"form: {form.name} ({reason})")
    stepper = Stepper(
        network=workers.wrap(form.prepare(network)),
        optimizer=make_optimizer(network, settings),
        scaler=torch.amp.GradScaler(device.where.type, enabled=form.precision is torch.float16),
        measure=lambda network, image, reference: loss_of(network, image, reference, form, measure),
        device=device,
        may_split=workers.count == 1,
    )
    alarms = Alarms(plan.regions or plan.labels[1:], device.where)
    step, elapsed_s, waited_s, rows = 0, 0.0, 0.0, []
    losses = torch.zeros(2, device=device.where)  # sum and number of the finite ones since the last validation
    if saved:
        network.load_state_dict(saved["network"])
        stepper.load_state_dict(saved["stepper"])
        if averaged:
            averaged.load_state_dict(saved["averaged"])
        alarms.load_state_dict(saved["alarms"])
        losses += saved["losses"].to(device.where)
        step, elapsed_s, waited_s, rows = (saved[name] for name in ("step", "elapsed_s", "waited_s", "rows"))
        log(f"resumed: {checkpoint} at step {step} after {elapsed_s:.0f} s of training")

    is_ahead = training[0].image.device != device.where or training[0].is_mapped
    is_pinned = is_ahead and device.where.type == "cuda"

    def draw(step: int) -> Batch:
        random = np.random.default_rng((*seed, step, workers.rank))
        num_foreground = workers.part_of(foreground_patches(share * workers.count, settings["foreground"]), share)
        image, reference = draw_batch(training, budget.patch_size, share, num_foreground, random)
        return (image.pin_memory(), reference.pin_memory()) if is_pinned else (image, reference)

    def save() -> None:
        save_checkpoint(
            checkpoint,
            key,
            {
                "network": network.state_dict(),
                "stepper": stepper.state_dict(),
                "averaged": averaged.state_dict() if averaged else {},
                "alarms": alarms.state_dict(),
                "losses": losses,
                "form": form.name,
                "step": step,
                "elapsed_s": elapsed_s,
                "waited_s": waited_s,
                "rows": rows,
            },
        )

    if workers.is_first and not saved:
        for earlier in LEFT_BEHIND:
            (folder / earlier).unlink(missing_ok=True)
    examples = draw_examples(validation or training, budget.patch_size, seed, device)
    if settings["augment"] and workers.is_first and not saved:
        picture = augmented_sheet(training, budget.patch_size, plan, options, mirrors, seed)
        with disk.written_whole(folder / "augmented.png") as partial:
            partial.write_bytes(picture)

    last_save = asked = time.monotonic()
    begin = last_save - elapsed_s
    save_interval_s = SMALLEST_SAVE_INTERVAL_S
    with (
        event_writer(folder, step, workers) as events,
        progress_bar(plan, seed, workers) as bar,
        StopRequest() as stop,
    ):
        for image, reference in batches(draw, step, ahead=is_ahead):
            progress = budget.progress(step, elapsed_s)
            if progress >= 1:
                break
            rate = settings["learning_rate"] * learning_rate_factor(progress)
            for group in stepper.optimizer.param_groups:
                group["lr"] = rate

            torch.manual_seed(step_seed(*seed, step=step, rank=workers.rank))
            image = image.to(device.where, non_blocking=True)
            reference = reference.to(device.where, non_blocking=True)
            if settings["augment"]:
                image, reference = augment(image, reference, options, mirrors)
            waited_s += time.monotonic() - asked
            loss, is_finite = stepper.step((image, reference))
            if averaged:
                averaged.update_parameters(network)
            is_counted = loss.isfinite()
            losses += torch.stack([torch.where(is_counted, loss, 0), is_counted])
            alarms.note_gradient(is_finite)

            step += 1
            elapsed_s, is_stopped = workers.agree(time.monotonic() - begin, stop.is_requested)
            after = budget.progress(step, elapsed_s)
            bar.update(after * 100 - bar.n)
            if int(after * NUM_VALIDATIONS) > int(progress * NUM_VALIDATIONS):
                train_loss = float(losses[0] / losses[1])
                losses.zero_()
                alarms.check_gradients(step, train_loss, training)
                if workers.is_first:
                    seen = validate(final, validation, plan, budget, form, device, seed, measure)
                    alarms.check_validation(step, seen)
                    row = (step, round(elapsed_s, 2), rate, train_loss, seen.loss, seen.dsc)
                    rows.append(dict(zip(PROGRESS, row, strict=True)))
                    records.write_table(folder / "progress.tsv", PROGRESS, rows)
                    for name, value in zip(PROGRESS[2:], row[2:], strict=True):
                        if value is not None:
                            events.add_scalar(name, value, step)
                    if len(rows) in PICTURED_VALIDATIONS:
                        log_pictures(events, step, final, *examples, plan, form)
                    shown = {"loss": train_loss, "validation_loss": seen.loss, "validation_dsc": seen.dsc}
                    bar.set_postfix(
                        {key: f"{value:.3f}" for key, value in shown.items() if value is not None}, refresh=False
                    )
                (elapsed_s,) = workers.agree(time.monotonic() - begin)
            if is_stopped:
                if workers.is_first:
                    save()
                stop.leave(step)
            if workers.is_first and time.monotonic() - last_save > save_interval_s:
                last_save = time.monotonic()
                save()
                save_interval_s = max(SMALLEST_SAVE_INTERVAL_S, (time.monotonic() - last_save) / SAVING_SHARE)
            asked = time.monotonic()
    if workers.is_first:
        save()  # asked again, as when only its validation cases have changed, it ends here
        alarms.check_end()
        records.write_table(folder / "skips.tsv", records.SKIPS, skip_rows(final, examples[0], form))
        records.write_facts(
            folder / "training.json",
            TrainingFacts(
                device=str(device),
                form=form.name,
                width=budget.width,
                patch_size=budget.patch_size,
                batch_size=share * workers.count,
                steps=step,
                elapsed_s=round(elapsed_s, 2),
                waited_s=round(waited_s, 2),
                reason=budget.reason,
                alarms=tuple(alarms.messages),
            ),
        )
    log(f"trained: {step} steps in {elapsed_s:.0f} s")
    return final.state_dict(), budget.width


def step_seed(seed: int, fold: int, *, step: int, rank: int = 0) -> int:
    """A seed for torch that depends on all four numbers."""
    return int(np.random.SeedSequence((seed, fold, step, rank)).generate_state(1, np.uint64)[0] >> 1)


def learning_rate_factor(progress: float) -> float:
    """From 0 to 1 during the warm-up, then down a polynomial of power 0.9 to 0."""
    return min(progress / WARM_UP, ((1 - progress) / (1 - WARM_UP)) ** 0.9) + 1e-3


def make_optimizer(network: nn.Module, settings: dict[str, Any]) -> torch.optim.Optimizer:
    rate, decay = settings["learning_rate"], settings["weight_decay"]
    if settings["optimizer"] == "sgd":
        return torch.optim.SGD(network.parameters(), lr=rate, weight_decay=decay, momentum=0.99, nesterov=True)
    return torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay, fused=True)


def event_writer(folder: Path, step: int, workers: Workers) -> AbstractContextManager[Any]:
    """TensorBoard events of the first process; what an interrupted run wrote after `step` is hidden."""
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step) if workers.is_first else nullcontext()


def progress_bar(plan: Plan, seed: tuple[int, int], workers: Workers) -> tqdm:
    return tqdm(
        total=100,
        desc=f"train {plan.configuration} fold {seed[1]}",
        unit="%",
        bar_format="{desc}: {percentage:3.0f}% |{bar:20}| {elapsed}<{remaining}{postfix}",
        mininterval=5,
        disable=not workers.is_first,
    )


def loss_of(
    network: nn.Module, image: torch.Tensor, reference: torch.Tensor, form: Form, measure: Loss
) -> torch.Tensor:
    network.train()
    with form.autocast(image.device):
        logits = network(image.to(memory_format=form.layout))
    return measure(logits, reference)


@torch.no_grad()
def validate(
    network: nn.Module,
    sources: list[PatchSource],
    plan: Plan,
    budget: Budget,
    form: Form,
    device: Device,
    seed: tuple[int, int],
    measure: Loss,
) -> Validation:
    """The same held-out patches each time. Without cases there is no loss; then, and in a regression, every count is 0."""
    losses, overlap, predicted, wanted = [], *np.zeros((3, plan.num_outputs))
    network.eval()
    random = np.random.default_rng(seed)
    for _ in range(max(1, VALIDATION_PATCHES // budget.batch_size) if sources else 0):
        image, reference = draw_batch(sources, budget.patch_size, budget.batch_size, budget.batch_size, random)
        image, reference = image.to(device.where, memory_format=form.layout), reference.to(device.where)
        with form.autocast(image.device):
            logits = network(image)
        losses.append(float(measure(logits, reference)))
        if plan.task == "segmentation":
            counts = count_voxels(logits, reference, plan)
            for total, count in zip((overlap, predicted, wanted), counts, strict=True):
                total += count
    first = 1 if plan.has_background else 0
    loss = float(np.mean(losses)) if losses else None
    return Validation(loss, overlap[first:], predicted[first:], wanted[first:])


if __name__ == "__main__":
    errors.run(main)
