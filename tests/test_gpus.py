"""Jobs and the GPUs of one machine; which are names here, for a lock needs no more."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import gpus
from pipeline.flow import Run
from pipeline.gpus import free_gpus, gpu_ids, lock_folder

ROOT = Path(__file__).parents[1]
CONFIG = {"name": "a", "cohort": "scans"}
NOTE = """
import json, os, sys, time
from pathlib import Path
file, met = Path(sys.argv[1]), int(sys.argv[2])
begin = time.monotonic()
file.touch()
while len(list(file.parent.glob("*.json"))) < met and time.monotonic() < begin + 30:
    time.sleep(0.02)  # the others may still be starting
time.sleep(0.1)
file.write_text(json.dumps({"gpus": os.environ["CUDA_VISIBLE_DEVICES"], "begin": begin, "end": time.monotonic()}))
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without GPUs, whose `nvidia-smi` a test may write into the folder."""
    for name in (gpus.VISIBLE, gpus.SHARE, "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fake_nvidia_smi(tmp_path, "echo driver not loaded; exit 9")
    return tmp_path


def fake_nvidia_smi(folder, script):
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def list_gpus(folder, number):
    lines = "\n".join(f"GPU {index}: NVIDIA A100 (UUID: GPU-{index})" for index in range(number))
    fake_nvidia_smi(folder, f"cat <<'END'\n{lines}\nEND")


def start(number, *command, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.gpus", str(number), *map(str, command)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_at_once(folder, asked, met, **environment):
    """What each of several jobs had, and when; the first `met` of them wait for each other."""
    (folder / "note.py").write_text(NOTE)
    files = [folder / f"{index}.json" for index in range(len(asked))]
    jobs = [
        start(number, sys.executable, folder / "note.py", file, met, **environment)
        for number, file in zip(asked, files, strict=True)
    ]
    said = [job.communicate(timeout=60) for job in jobs]
    assert all(job.returncode == 0 for job in jobs), said
    return [json.loads(file.read_text()) for file in files]


def most_at_once(spent, gpu=None):
    """Jobs at the same moment, at most; those that had one GPU, or all."""
    having = [one for one in spent if gpu is None or gpu in one["gpus"].split(",")]
    return max(sum(one["begin"] <= other["begin"] < one["end"] for one in having) for other in having)


def test_gpus_are_those_that_are_visible_else_those_that_the_driver_lists_else_none(machine, monkeypatch):
    assert gpu_ids() == []
    list_gpus(machine, 2)
    assert gpu_ids() == ["0", "1"]
    for visible, expected in {"3, GPU-7": ["3", "GPU-7"], "": [], "-1": [], "NoDevFiles": []}.items():
        monkeypatch.setenv(gpus.VISIBLE, visible)
        assert gpu_ids() == expected
    monkeypatch.delenv(gpus.VISIBLE)
    monkeypatch.setenv("PATH", str(machine / "nowhere"))
    assert gpu_ids() == []


def test_jobs_on_two_gpus_run_two_at_once_and_never_two_on_one(machine):
    list_gpus(machine, 2)
    spent = run_at_once(machine, [1] * 4, met=2)
    assert {one["gpus"] for one in spent} == {"0", "1"}
    assert most_at_once(spent, "0") == most_at_once(spent, "1") == 1
    assert most_at_once(spent) == 2


def test_as_many_jobs_share_a_gpu_as_are_told_to(machine):
    spent = run_at_once(machine, [1] * 3, met=2, CUDA_VISIBLE_DEVICES="GPU-7", GPU_SHARE="2")
    assert {one["gpus"] for one in spent} == {"GPU-7"}
    assert most_at_once(spent, "GPU-7") == 2


def test_two_jobs_that_need_both_gpus_take_turns(machine):
    spent = run_at_once(machine, [2, 2, 1], met=1, CUDA_VISIBLE_DEVICES="0,1")
    assert [one["gpus"] for one in spent[:2]] == ["0,1", "0,1"]
    assert most_at_once(spent, "0") == most_at_once(spent, "1") == 1


def test_an_unused_gpu_is_taken_before_a_second_place_on_a_used_one(machine):
    held = [free_gpus(1, ["0", "1"], 2, machine) for _ in range(5)]
    assert [list(one) for one in held] == [["0"], ["1"], ["0"], ["1"], []]
    for handle in [handle for one in held for handle in one.values()]:
        os.close(handle)


def test_a_gpu_is_free_again_when_its_job_is_killed(machine):
    job = start(1, "sh", "-c", "echo has $CUDA_VISIBLE_DEVICES; exec sleep 60", CUDA_VISIBLE_DEVICES="0")
    assert job.stdout.readline() == "has 0\n"
    waiting = start(1, "true", CUDA_VISIBLE_DEVICES="0")
    assert waiting.stdout.readline() == f"GPU: waiting, for other jobs have 0; their locks are in {lock_folder()}\n"
    job.send_signal(signal.SIGKILL)
    begin = time.monotonic()
    assert waiting.wait(10) == 0 and time.monotonic() - begin < 5
    assert job.wait() == -signal.SIGKILL, "the job itself was killed, for nothing stands between"
    for process in (job, waiting):
        process.communicate()


def test_jobs_of_slurm_do_not_wait_for_those_in_another_allocation(machine, monkeypatch):
    plain = lock_folder()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert lock_folder() == plain.with_name(f"{plain.name}-17")


def test_a_job_without_a_gpu_runs_as_it_is(machine):
    for number, environment in ((1, {}), (1, {"CUDA_VISIBLE_DEVICES": ""}), (0, {"CUDA_VISIBLE_DEVICES": "0"})):
        job = start(number, "sh", "-c", "echo ${CUDA_VISIBLE_DEVICES-unset}; exit 7", **environment)
        assert job.communicate()[0] == f"{environment.get('CUDA_VISIBLE_DEVICES', 'unset')}\n"
        assert job.returncode == 7


def test_more_gpus_than_there_are_is_one_clear_line(machine):
    job = start(3, "true", CUDA_VISIBLE_DEVICES="4,5")
    assert job.communicate() == (
        "",
        "TrainingError: train.gpus is 3, 2 found (4, 5). Set it to 2 or fewer, or let CUDA_VISIBLE_DEVICES name more.\n",
    )
    assert job.returncode == 2


def test_the_workflow_runs_as_many_jobs_as_the_machine_has_gpus_times_their_share(machine):
    assert Run(CONFIG).gpus_at_once == 1
    list_gpus(machine, 4)
    assert Run(CONFIG).gpus_at_once == 4
    assert Run({**CONFIG, "gpu_share": 3}).gpus_at_once == 12
    assert Run({**CONFIG, "device": "cpu"}).gpus_at_once == 1
    assert Run({**CONFIG, "device": "cpu", "train": {"gpus": 2}}).gpus_at_once == 2


def test_jobs_of_a_run_without_gpus_see_none_and_no_result_depends_on_the_share():
    assert Run({**CONFIG, "gpu_share": 2}).environment == "GPU_SHARE=2"
    assert Run({**CONFIG, "device": "cpu"}).environment == "GPU_SHARE=1 CUDA_VISIBLE_DEVICES="
    assert Run({**CONFIG, "gpu_share": 2}).settings("train") == Run(CONFIG).settings("train")
