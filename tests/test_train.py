"""Training learns, resumes to the same bytes, and refuses what it cannot use. Tiny on purpose: a few steps on the CPU."""

import dataclasses
import errno
import fcntl
import os
import re
import signal
import socket

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline import records
from pipeline import train as module
from pipeline.budget import fit_budget
from pipeline.config import complete, fitting_losses
from pipeline.errors import TrainingError
from pipeline.nn.checkpoints import exclusive, load_checkpoint, load_model, save_checkpoint, save_model, training_key
from pipeline.nn.device import Device
from pipeline.nn.forms import usual_form
from pipeline.nn.losses import make_loss
from pipeline.nn.networks import build_network
from pipeline.nn.patches import PatchSource
from pipeline.nn.stop import STOPPED_EXIT_CODE, StopRequest
from pipeline.plan import Width
from pipeline.preprocess import foreground_locations
from pipeline.restore import Prediction, restore_labels
from tests.dense import as_it_is, predict_densely
from tests.test_preprocess import make_plan

CPU = Device(torch.device("cpu"), None)
SETTINGS = complete({"name": "a", "cohort": "demo", "train": {"iterations": 1}})["train"] | {
    "learning_rate": 0.01,
    "deterministic": True,
}


def tiny_plan(dims=3, **changes):
    flat = (
        dict(patch_size=(24, 16), strides=((1, 1), (2, 2), (2, 2)), kernels=((3, 3),) * 3, batch_size=12)
        if dims == 2
        else {}
    )
    return make_plan(**{"dims": dims, "widths": (Width(4, 0.01),), **flat, **changes})


def blob_source(seed):
    """A bright ball of class 1 and a dark ball of class 2 in noise."""
    random = np.random.default_rng(seed)
    voxels = np.stack(np.meshgrid(*(np.arange(size) for size in (16, 24, 20)), indexing="ij"))
    classes = np.zeros((16, 24, 20), np.uint16)
    for index, centre in enumerate(([8, 7, 6], [8, 16, 13]), start=1):
        shifted = np.array(centre) + random.integers(-1, 2, size=3)
        classes[((voxels - shifted[:, None, None, None]) ** 2).sum(0) < 20] = index
    image = np.array([0, 2, -2])[classes] + random.normal(0, 0.3, classes.shape)
    return PatchSource(
        f"case_{seed}",
        torch.from_numpy(image[None].astype(np.float32)),
        torch.from_numpy(classes.view(np.int16)),
        foreground_locations(classes),
    )


def run(folder, settings, plan=None, fold=0, sources=None, validation=None):
    return module.train(
        plan or tiny_plan(),
        {**SETTINGS, **settings},
        CPU,
        training=sources or [blob_source(seed) for seed in range(3)],
        validation=validation or [blob_source(9)],
        seed=(1, fold),
        folder=folder,
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_a_network_learns_two_blobs_and_its_saved_model_finds_them(tmp_path, dims):
    plan = tiny_plan(dims)
    weights, width = run(tmp_path, {"iterations": 200}, plan)
    save_model(tmp_path / "model.pt", weights, width, plan)
    model = load_model(tmp_path / "model.pt", CPU.where)
    source = blob_source(20)
    probabilities = predict_densely([model], source.image.numpy(), CPU)
    assert np.allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    found = probabilities.argmax(axis=0)
    for label in (1, 2):
        overlap = ((found == label) & (source.classes.numpy() == label)).sum()
        assert 2 * overlap / ((found == label).sum() + (source.classes.numpy() == label).sum()) > 0.7


def test_a_network_learns_regions_that_overlap(tmp_path):
    plan = tiny_plan(regions=((2, 5), (5,)))
    weights, width = run(tmp_path, {"iterations": 200, "loss": "dice_bce"}, plan)
    save_model(tmp_path / "model.pt", weights, width, plan)
    source = blob_source(20)
    model = load_model(tmp_path / "model.pt", CPU.where)
    maps = predict_densely([model], source.image.numpy(), CPU)
    found = restore_labels([Prediction([maps], maps.shape[1:], as_it_is(maps.shape[1:]))], plan)
    for region in plan.regions:
        masks = np.isin(found, region), np.isin(np.array(plan.labels)[source.classes.numpy()], region)
        assert 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum()) > 0.7


def test_ignored_voxels_are_neither_right_nor_wrong_in_validation(tmp_path):
    plan, source = tiny_plan(ignore_label=9), blob_source(1)
    source.classes[:] = 3  # the index after those of the labels
    budget, form = fit_budget(plan, {"iterations": 1}), usual_form(CPU, 3)
    seen = module.validate(build_network(plan, 4), [source], plan, budget, form, CPU, (1, 0), make_loss(SETTINGS, plan))
    assert (seen.loss, seen.dsc) == (0, None)
    assert not any([*seen.overlap, *seen.predicted, *seen.wanted])


class Killed(BaseException):
    """Stands for kill -9: nothing of ours may catch it."""


def save_after_every_step(monkeypatch):
    monkeypatch.setattr(module, "SMALLEST_SAVE_INTERVAL_S", 0.0)
    monkeypatch.setattr(module, "SAVING_SHARE", 1e9)


@pytest.mark.parametrize("settings", [{}, {"optimizer": "sgd", "ema": 0.9}])
def test_a_run_killed_at_twenty_random_steps_ends_with_the_same_bytes(tmp_path, monkeypatch, capsys, settings):
    save_after_every_step(monkeypatch)
    settings = {"iterations": 30, **settings}
    unbroken, _ = run(tmp_path / "unbroken", settings)

    random = np.random.default_rng(3)
    kills = [*sorted(random.choice(30, size=20, replace=False)), None]
    kills = [None if kill is None else int(kill) for kill in kills]
    draw, seen = module.draw_batch, []

    def draw_until_killed(sources, *rest):
        if len(sources) > 1:  # not a validation
            if first_step + len(seen) == kills[0]:
                raise Killed
            seen.append(1)
        return draw(sources, *rest)

    save = module.save_checkpoint
    monkeypatch.setattr(module, "draw_batch", draw_until_killed)
    monkeypatch.setattr(module, "save_checkpoint", lambda *args: save(*args) if random.random() < 0.7 else None)
    while True:
        saved = tmp_path / "killed" / "checkpoint.pt"
        first_step = torch.load(saved, weights_only=True)["step"] if saved.exists() else 0
        seen.clear()
        try:
            resumed, _ = run(tmp_path / "killed", settings)
            break
        except Killed:
            kills.pop(0)
    assert kills == [None], "every kill happened"
    assert "resumed: " in capsys.readouterr().out
    assert unbroken.keys() == resumed.keys()
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_granted_after_the_step_with_a_code_that_says_run_again(tmp_path, monkeypatch, capsys, number):
    unbroken, _ = run(tmp_path / "unbroken", {"iterations": 6})
    draw, calls = module.draw_batch, []

    def signalled_in_step_three(*args):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(number)
        return draw(*args)

    monkeypatch.setattr(module, "NUM_VALIDATIONS", 1)
    monkeypatch.setattr(module, "draw_batch", signalled_in_step_three)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "stopped", {"iterations": 6})
    assert stopped.value.code == STOPPED_EXIT_CODE == 75
    assert "saved at step 3 as asked by a signal" in capsys.readouterr().out
    assert signal.getsignal(number) is before
    resumed, _ = run(tmp_path / "stopped", {"iterations": 6})
    assert "at step 3 after" in capsys.readouterr().out
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)


def test_sigterm_twice_as_slurm_sends_it_leaves_time_to_save_and_a_second_ctrl_c_does_not(request):
    # as Python starts; processes of pytest-xdist ignore it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with StopRequest() as stop:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert stop.is_requested
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_changed_settings_never_resume_an_old_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "SMALLEST_SAVE_INTERVAL_S", 0.0)
    run(tmp_path, {"iterations": 3})
    run(tmp_path, {"iterations": 3, "learning_rate": 0.02})
    assert "of other data or settings; training starts afresh" in capsys.readouterr().out


def test_changed_data_never_resume_an_old_run_and_other_timings_do(tmp_path):
    budget, plan = fit_budget(tiny_plan(), {"iterations": 3}), tiny_plan()
    key = training_key(plan, budget, SETTINGS, (1, 0), ["digest", "case_0"])
    assert key != training_key(plan, budget, SETTINGS, (1, 0), ["other digest", "case_0"])
    again = dataclasses.replace(
        plan, widths=(Width(4, 0.5),), reasons={"axes": "said in other words"}, foreground_intensity=()
    )
    assert key == training_key(again, budget, SETTINGS, (1, 0), ["digest", "case_0"])


def test_an_infinite_loss_of_one_step_is_left_out_of_the_mean(tmp_path, monkeypatch):
    measure, calls = module.loss_of, []

    def infinite_in_step_two(*args):
        calls.append(1)
        return measure(*args) * (float("inf") if len(calls) == 2 else 1)

    monkeypatch.setattr(module, "loss_of", infinite_in_step_two)
    monkeypatch.setattr(module, "NUM_VALIDATIONS", 1)
    run(tmp_path, {"iterations": 4})
    assert np.isfinite(float((tmp_path / "progress.tsv").read_text().split("\t")[-3]))


def test_a_damaged_checkpoint_is_said_and_not_used(tmp_path, capsys):
    save_checkpoint(tmp_path / "checkpoint.pt", "key", {"step": 3})
    assert load_checkpoint(tmp_path / "checkpoint.pt", "key")["step"] == 3
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(whole[: len(whole) // 2])
    assert load_checkpoint(tmp_path / "checkpoint.pt", "key") is None
    assert "damaged" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "none.pt", "key") is None


def test_a_missing_or_damaged_model_is_named(tmp_path):
    with pytest.raises(TrainingError, match=r"model\.pt: no trained model"):
        load_model(tmp_path / "model.pt", CPU.where)
    (tmp_path / "model.pt.sha256").write_text(f"{'0' * 64}  model.pt\n")
    (tmp_path / "model.pt").write_bytes(b"not a model")
    with pytest.raises(TrainingError, match=r"model\.pt: damaged \(not the file that model.pt.sha256 describes\)"):
        load_model(tmp_path / "model.pt", CPU.where)
    (tmp_path / "model.pt.sha256").unlink()
    with pytest.raises(TrainingError, match=r"model\.pt: damaged"):
        load_model(tmp_path / "model.pt", CPU.where)


def test_folds_differ_and_the_same_fold_repeats(tmp_path):
    first, again, other = (run(tmp_path / str(part), {"iterations": 2}, fold=part // 2)[0] for part in range(3))
    name = next(iter(first))
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


def test_no_case_outside_the_fold_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="no labelled case is outside this fold"):
        module.train(
            tiny_plan(), {**SETTINGS, "iterations": 1}, CPU, training=[], validation=[], seed=(0, 0), folder=tmp_path
        )


def test_a_loss_that_is_never_finite_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "loss_of", lambda network, image, *_: network(image)[0].mean() * float("nan"))
    with pytest.raises(TrainingError, match=r"loss nan at step 1, 1 steps in a row.*Lower `train.learning_rate`"):
        run(tmp_path, {"iterations": 1})


def test_a_scan_with_nan_is_named(tmp_path):
    broken = blob_source(0)
    broken.image[...] = torch.nan
    with pytest.raises(TrainingError, match=r"NaN or infinity in the scans of case_0\. Correct or drop them"):
        module.train(
            tiny_plan(),
            {**SETTINGS, "iterations": 1},
            CPU,
            training=[broken],
            validation=[],
            seed=(1, 0),
            folder=tmp_path,
        )


def test_one_bad_step_is_skipped_and_said(tmp_path, monkeypatch, capsys):
    measure, calls = module.loss_of, []

    def bad_in_step_two(*args):
        calls.append(1)
        return measure(*args) * (float("nan") if len(calls) == 2 else 1)

    monkeypatch.setattr(module, "loss_of", bad_in_step_two)
    monkeypatch.setattr(module, "NUM_VALIDATIONS", 1)
    weights, _ = run(tmp_path, {"iterations": 4})
    assert all(value.isfinite().all() for value in weights.values())
    assert "alarm: 1 steps skipped" in capsys.readouterr().out


def test_averaged_weights_are_those_that_are_saved(tmp_path):
    plain, _ = run(tmp_path / "plain", {"iterations": 6})
    averaged, _ = run(tmp_path / "averaged", {"iterations": 6, "ema": 0.9})
    assert plain.keys() == averaged.keys()
    assert any(not torch.equal(plain[name], averaged[name]) for name in plain)


def test_training_goes_on_from_pretrained_weights_and_refuses_those_of_another_network(tmp_path, capsys):
    plan = tiny_plan()
    weights, width = run(tmp_path / "first", {"iterations": 8}, plan)
    save_model(tmp_path / "model.pt", weights, width, plan)
    started, _ = run(
        tmp_path / "second", {"iterations": 1, "learning_rate": 1e-12, "pretrained": str(tmp_path / "model.pt")}
    )
    assert f"pretrained: {len(weights)} of {len(weights)} weights" in capsys.readouterr().out
    assert all(torch.allclose(weights[name], started[name], atol=1e-6) for name in weights)
    more_labels = tiny_plan(labels=(0, 1, 2, 3))
    run(tmp_path / "third", {"iterations": 1, "pretrained": str(tmp_path / "model.pt")}, more_labels)
    assert f"of {len(weights)} weights from" in capsys.readouterr().out
    with pytest.raises(TrainingError, match=r"none.pt: no such file found.*Correct `train.pretrained`"):
        run(tmp_path / "no", {"iterations": 1, "pretrained": str(tmp_path / "none.pt")})
    wider = tiny_plan(widths=(Width(6, 0.01),))
    with pytest.raises(TrainingError, match=r"weights fit\. Use the same"):
        run(tmp_path / "fourth", {"iterations": 1, "pretrained": str(tmp_path / "model.pt")}, wider)


@pytest.mark.parametrize(("task", "is_shown"), [("segmentation", True), ("regression", False)])
def test_the_progress_bar_shows_what_was_measured(tmp_path, capsys, task, is_shown):
    source, plan = blob_source(1), tiny_plan()
    if task == "regression":
        source = dataclasses.replace(source, classes=source.classes.float())
        plan = tiny_plan(task=task, labels=())
    loss = fitting_losses(task, has_regions=False)[0]
    run(tmp_path, {"iterations": 2, "loss": loss}, plan, sources=[source], validation=[source])
    bar = capsys.readouterr().err
    assert "validation_loss=" in bar
    assert ("validation_dsc=" in bar) == is_shown


def test_two_processes_never_train_in_one_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    host = re.escape(socket.gethostname())
    who = rf"another process is training here: process {os.getpid()} on {host}, job 42 of SLURM \(scancel 42\), since 2"
    for _ in range(2):  # the second time, the file of the first is there
        with exclusive(tmp_path), pytest.raises(TrainingError, match=who), exclusive(tmp_path):
            pass


def test_where_the_file_system_has_no_locks_a_training_says_so_and_goes_on(tmp_path, monkeypatch, capsys):
    def refuse(handle, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with exclusive(tmp_path):
        said = capsys.readouterr().out
    assert f"{tmp_path}: not locked (No locks available): see to it that nobody else trains here." in said


def test_a_new_training_leaves_no_picture_of_the_one_before(tmp_path):
    run(tmp_path, {"iterations": 2})
    assert (tmp_path / "augmented.png").exists()
    run(tmp_path, {"iterations": 2, "augment": False})
    assert not (tmp_path / "augmented.png").exists()


def test_progress_is_written_for_the_report(tmp_path):
    run(tmp_path, {"iterations": 4})
    lines = (tmp_path / "progress.tsv").read_text().splitlines()
    assert lines[0].split("\t") == list(module.PROGRESS)
    assert lines[-1].split("\t")[0] == "4"
    assert list((tmp_path / "tensorboard").iterdir())


def test_what_was_seen_and_done_is_left_for_the_report(tmp_path):
    run(tmp_path, {"iterations": 4})
    facts = records.read_facts(tmp_path / "training.json")
    assert (facts.steps, facts.width, facts.batch_size, facts.patch_size) == (4, 4, 2, (16, 24, 16))
    assert 0 < facts.waited_s < facts.elapsed_s
    rows = records.read_table(tmp_path / "skips.tsv")
    assert [row["skip"] for row in rows] == ["1: 16 x 24 x 16", "2: 16 x 12 x 8"]
    assert (tmp_path / "augmented.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [image.step for image in events.Images("skips")] == [1], "of 20 validations it had 4"


def test_without_augmentation_there_is_no_picture_of_it(tmp_path):
    run(tmp_path, {"iterations": 1, "augment": False})
    assert not (tmp_path / "augmented.png").exists()


def test_the_learning_rate_rises_then_falls_to_nothing():
    factors = [module.learning_rate_factor(progress) for progress in np.linspace(0, 1, 101)]
    assert factors[0] < 0.01
    assert 0.95 < max(factors) < 1.01
    assert factors.index(max(factors)) == 5
    assert factors[-1] < 0.01


@pytest.mark.parametrize("dims", [2, 3])
def test_training_gives_logits_at_every_resolution_but_the_two_coarsest_and_prediction_one(dims):
    network = build_network(tiny_plan(dims), 4)
    image = torch.zeros(1, 1, *tiny_plan(dims).patch_size)
    outputs = network.train()(image)
    assert outputs[0].shape[2:] == tiny_plan(dims).patch_size
    assert len(outputs) == 2
    assert network.eval()(image).shape == (1, 3, *image.shape[2:])


def test_a_network_trains_and_is_validated_around_ignored_voxels(tmp_path):
    source = blob_source(1)
    classes = source.classes.clone()
    classes[:, :14] = 3  # the index after those of the labels
    sources = [dataclasses.replace(source, classes=classes)]
    run(tmp_path, {"iterations": 2}, tiny_plan(ignore_label=9), sources=sources, validation=sources)
    last = (tmp_path / "progress.tsv").read_text().splitlines()[-1].split("\t")
    assert np.isfinite([float(value) for value in last]).all()
