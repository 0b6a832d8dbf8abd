"""Nothing is lost: whatever ends a run, the same command goes on and ends with the same bytes."""

import errno
import os
import random
import shutil
import socket
import subprocess
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline import discover, disk, ensemble, evaluate, fingerprint, inference, predict, preprocess, records, train
from pipeline.abandoned import remove_abandoned
from pipeline.check import __main__ as check
from pipeline.errors import DiskError
from pipeline.flow import Run
from pipeline.nn.checkpoints import load_checkpoint, save_checkpoint, save_model
from pipeline.plan import __main__ as plan
from pipeline.report import __main__ as report
from tests import small_run
from tests.test_train import tiny_plan

IS_REQUIRED = "REQUIRE_MOUNT" in os.environ
DISK_BYTES = 16_000_000
ONLY_3D = {**small_run.SETTINGS, "configurations": {"3d_fullres": small_run.SETTINGS["configurations"]["3d_fullres"]}}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of a run that nobody killed. Meanwhile a second one tried to do the same."""
    folder = tmp_path_factory.mktemp("unbroken")
    small_run.prepare(folder)
    process = small_run.start(folder)
    while not (folder / "logs").exists():
        time.sleep(0.1)
    said = (folder / "said.txt").rename(folder / "said_by_first.txt")
    (folder / "second.txt").write_text(small_run.run(folder)[1])
    assert process.wait(timeout=600) == 0, said.read_text()
    return folder


def test_a_second_snakemake_in_the_same_folder_is_refused_and_does_no_harm(unbroken):
    assert "Directory cannot be locked" in (unbroken / "second.txt").read_text()
    assert len(small_run.made(unbroken)) == 3 * 2 + 4, "masks of two configurations and the ensemble, and tables"


def test_a_run_that_is_killed_and_then_loses_its_jobs_ends_with_the_bytes_of_one_that_is_not(unbroken, tmp_path):
    """First all of it, as by a power cut, in its first half; then what runs on another machine, later."""
    moments, jobs = random.Random(5), small_run.jobs(unbroken)
    early, late = (moments.choice(part) for part in np.array_split([*jobs], 2))
    small_run.prepare(tmp_path)
    assert small_run.kill(tmp_path, early, moments.uniform(0, jobs[early]))
    assert small_run.run(tmp_path, "--unlock")[0] == 0
    assert small_run.kill(tmp_path, late, moments.uniform(0, jobs[late]) / 2, only_jobs=True)
    code, said = small_run.run(tmp_path)
    assert code == 0, said
    assert small_run.made(tmp_path) == small_run.made(unbroken)
    assert not list(tmp_path.rglob(f"{disk.PARTIAL}*"))


def test_a_clock_that_was_ahead_reruns_nothing(tmp_path):
    small_run.prepare(tmp_path)
    tomorrow = time.time() + 24 * 3600
    for path in (tmp_path / "scans").rglob("*"):
        os.utime(path, (tomorrow, tomorrow))
    code, said = small_run.run(tmp_path, "check")
    assert code == 0, said
    assert "Nothing to be done" in small_run.run(tmp_path, "check")[1]


def test_what_a_killed_process_was_writing_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    host, over = socket.gethostname(), subprocess.Popen(["true"])
    over.wait()
    names = (f"{host}-{over.pid}-a.tsv", f"{host}-{os.getpid()}-a.tsv", "elsewhere-1-a.tsv", "elsewhere-2-a.tsv")
    dead, living, elsewhere, long_ago = (tmp_path / "train" / f"{disk.PARTIAL}{name}" for name in names)
    for path in (dead, living, elsewhere, long_ago):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    os.utime(long_ago, (0, 0))
    remove_abandoned(tmp_path)
    assert set(living.parent.iterdir()) == {living, elsewhere}
    remove_abandoned(tmp_path / "nowhere")


class Disk:
    """A disk of its own, which can be filled to the last byte."""

    def __init__(self, folder):
        self.folder, self.filling = folder, folder / "filling"

    def fill(self, *, but=0):
        """Leave `but` bytes or a little less."""
        room = os.statvfs(self.folder).f_bavail * os.statvfs(self.folder).f_bsize
        with self.filling.open("ab", buffering=0) as handle:
            os.posix_fallocate(handle.fileno(), 0, self.filling.stat().st_size + max(room - but, 1))

    def empty(self):
        self.filling.unlink()


def mount(*arguments):
    if shutil.which("mount") is None or os.geteuid() != 0:
        reason = "only root may mount a small disk"
    else:
        done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
        reason = f"no disk can be mounted here: {done.stderr}" if done.returncode else None
    if reason and IS_REQUIRED:
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.fixture
def small_disk(tmp_path):
    (tmp_path / "disk").mkdir()
    mount("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", tmp_path / "disk")
    yield Disk(tmp_path / "disk")
    subprocess.run(["umount", "--lazy", tmp_path / "disk"], check=True)


def save_mask(path):
    with disk.written_whole(path) as partial:
        nib.save(nib.Nifti1Image(np.random.default_rng(0).random((40, 40, 40)), np.eye(4)), partial)


def save_archive(path):
    with disk.written_whole(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        archive.writestr("a", bytes(400_000))


WEIGHTS = {"a": torch.ones(100_000)}
WRITERS = {
    "mask.nii.gz": save_mask,
    "probabilities.npz": save_archive,
    "image.npy": lambda path: preprocess.save_array(path, np.ones((50_000, 2), np.float32)),
    "model.pt": lambda path: save_model(path, WEIGHTS, 4, tiny_plan()),
    "metrics.tsv": lambda path: records.write_table(path, ["a"], [{"a": "b" * 400_000}]),
    "plan.json": lambda path: records.write_json(path, {"a": "b" * 400_000}),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("but", [0, 150_000])
def test_a_file_that_a_full_disk_does_not_take_is_named_and_the_one_before_it_stays(small_disk, name, but):
    path = small_disk.folder / name
    path.write_text("before")
    small_disk.fill(but=but)
    with pytest.raises(
        DiskError, match=rf"{name}: No space left on device \(ENOSPC\) found, a disk with room .* same command again"
    ):
        WRITERS[name](path)
    small_disk.empty()
    assert path.read_text() == "before"
    assert {file.name for file in small_disk.folder.iterdir()} == {name}
    WRITERS[name](path)
    assert path.stat().st_size > 100_000


def test_a_checkpoint_that_a_full_disk_does_not_take_leaves_the_one_before_it(small_disk):
    path = small_disk.folder / "checkpoint.pt"
    for step in (1, 2):
        save_checkpoint(path, "key", {**WEIGHTS, "step": step})
    small_disk.fill(but=150_000)
    with pytest.raises(DiskError, match=r"checkpoint.pt: No space left on device"):
        save_checkpoint(path, "key", {**WEIGHTS, "step": 3})
    assert load_checkpoint(path, "key")["step"] == 2


def test_a_disk_that_is_read_only_is_named_and_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(DiskError, match=r"events: Read-only file system \(EROFS\)"), disk.on_disk(Path("events")):
        raise OSError(errno.EROFS, "no", "other")
    with pytest.raises(ValueError, match=r"^7$"), disk.on_disk(Path("events")):
        raise ValueError("7")
    with pytest.raises(IsADirectoryError), disk.on_disk(Path("events")):
        tmp_path.write_text("")


def stages(run):
    """Of the whole flow in its order: name, and what calls the stage as its rule does."""
    name, of = run.name, SimpleNamespace(configuration="3d_fullres", fold=0)
    tables = {"results": name, "configurations": of.configuration, "folds": run.folds}
    place = {"results": name, "configuration": of.configuration}
    return {
        "discover": lambda: discover.main(name, run.config["cohort"], run.cohort_settings),
        "check": lambda: check.main(name, run.check_settings),
        "fingerprint": lambda: fingerprint.main(name),
        "plan": lambda: plan.main(**place, settings=run.configuration(of), device="cpu"),
        "preprocess": lambda: [preprocess.main(**place, fold=fold) for fold in range(run.config["folds"])],
        "train": lambda: train.main(**place, fold=0, settings=run.settings("train"), device="cpu"),
        "inference": lambda: inference.main(**place, fold=0, settings=run.inference_settings, device="cpu"),
        "predict": lambda: predict.main(**place, fold=0, settings=run.predict_settings, keep_probabilities=True),
        "ensemble": lambda: ensemble.main(**tables, settings=run.settings("ensemble")),
        "evaluate": lambda: evaluate.main(
            **{**tables, "configurations": f"{of.configuration},ensemble"}, settings=run.settings("evaluate")
        ),
        "report": lambda: report.main(name, run.settings("report"), run.provenance),
    }


def test_on_a_full_disk_every_stage_fails_with_the_path_and_goes_on_once_there_is_room(
    small_disk, tmp_path, monkeypatch
):
    """From a cohort that is read only."""
    monkeypatch.chdir(tmp_path)
    small_run.prepare(tmp_path)
    mount("--bind", "scans", "scans")
    mount("-o", "remount,bind,ro", "scans")
    try:
        with pytest.raises(OSError, match="Read-only file system"):
            (tmp_path / "scans" / "a").touch()
        Path("results").symlink_to(small_disk.folder)
        run = Run(ONLY_3D)
        for name, stage in stages(run).items():
            before = records.digests(path for path in run.files.root.rglob("*") if path.is_file())
            small_disk.fill()
            with pytest.raises(DiskError, match=r"^results/small/\S+: No space left on device \(ENOSPC\)"):
                stage()
            small_disk.empty()
            lost = before.items() - records.digests(path for path in before if path.exists()).items()
            assert not lost, name
            stage()
        assert run.files.report.stat().st_size > 10_000
    finally:
        subprocess.run(["umount", "scans"], check=True)
