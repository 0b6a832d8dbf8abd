"""The flow as jobs of a SLURM that is started for it: `tests.slurm_node`. Six minutes or so on two cores."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline.phantoms import write_cohort
from pipeline.records import read_table
from tests.slurm_node import running_node, said, why_not

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "name": "tiny",
    "cohort": "scans",
    "folds": 2,
    "device": "cpu",
    "threads": 1,
    "memory_gib": 1,
    "configurations": {"3d_fullres": {"dims": 3, "features": 4, "patch_size": [16, 16, 16], "batch_size": 2}},
}
OFTEN = ["--slurm-init-seconds-before-status-checks", "3", "--seconds-between-status-checks", "3"]
ASKED = "comment:60,numcpus:6,minmemory:8,tres-per-job:12,timelimit:14"
FOLDER = Path("results/tiny/train/3d_fullres")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    reason = why_not() or ("" if find_spec("snakemake_executor_plugin_slurm") else 'pip install -e ".[slurm]"')
    if reason and os.environ.get("REQUIRE_SLURM"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    with running_node(tmp_path_factory.mktemp("slurm")):
        yield


@pytest.fixture(scope="module")
def finished(slurm, tmp_path_factory):
    """A folder with a cohort of four phantoms, whose flow has run as jobs, and what `squeue` showed meanwhile."""
    folder = tmp_path_factory.mktemp("run")
    write_cohort(folder / "scans", num_cases=4, size=0.5)
    process, seen = start(folder, train={"iterations": 3}), set()
    while process.poll() is None:
        seen |= set(said("squeue", "--noheader", f"--Format={ASKED}").splitlines())
        time.sleep(0.3)
    assert process.returncode == 0, (folder / "said.txt").read_text()
    return folder, seen


def start(folder, *arguments, **changes):
    """`snakemake` with our profile in `folder`; what it says goes to said.txt."""
    (folder / "config.json").write_text(json.dumps({**SETTINGS, **changes}))
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--configfile", "config.json"]
    command += ["--workflow-profile", ROOT / "envs" / "slurm", *OFTEN, *arguments]
    with (folder / "said.txt").open("w") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)


def job_training(fold):
    """The id of the running job that trains the fold, or nothing."""
    lines = said("squeue", "--noheader", "--states=RUNNING", "--format=%i %k").splitlines()
    return next((line.split()[0] for line in lines if line.endswith(f"rule_train_wildcards_3d_fullres_{fold}")), "")


def wait_for(happens, seconds=120):
    deadline = time.monotonic() + seconds
    while not (result := happens()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert result
    return result


def forget_logs(folder):
    """So that a test sees what its own jobs log."""
    shutil.rmtree(folder / "logs" / "tiny" / "train")


def log_of(folder, fold):
    path = folder / f"logs/tiny/train/3d_fullres/fold_{fold}.log"
    return path.read_text() if path.exists() else ""


def test_the_flow_runs_as_jobs_that_ask_for_cpus_memory_gpus_and_minutes_and_ends_with_the_report(finished):
    folder, seen = finished
    assert (folder / "results/tiny/report.html").exists()
    assert len(read_table(folder / "results/tiny/metrics.tsv")) == 2 * 4 * 3, "configurations, cases, labels"
    asked = {line.split()[0]: line.split()[1:] for line in seen}
    assert {name.split("_wildcards_")[0] for name in asked} == {
        *(f"rule_{name}" for name in ("check", "fingerprint", "plan", "preprocess", "train", "inference", "predict")),
        "rule_scores_ensemble_evaluate_report",
    }
    assert asked["rule_check"] == ["1", "16000M", "N/A", "4:00:00"]
    assert asked["rule_train_wildcards_3d_fullres_0"] == ["1", "3984M", "gres:gpu:1", "1-00:00:00"]
    assert "report: file:" in (folder / "said.txt").read_text()


def test_a_training_that_meets_its_time_limit_or_a_signal_saves_and_goes_on_in_another_job(finished):
    """SLURM's shortest limit is a minute, and it looks every half; the second fold gets SIGTERM, as at a preemption."""
    folder, _ = finished
    forget_logs(folder)
    models = [str(FOLDER / f"fold_{fold}" / "model.pt") for fold in range(2)]
    process = start(folder, *models, "--set-resources", "train:runtime=1", train={"minutes": 1.7})
    job = wait_for(lambda: "validation_loss" in log_of(folder, 1) and job_training(1))
    said("scancel", "--signal=TERM", job)
    wait_for(lambda: "resumed: " in log_of(folder, 1))
    assert process.wait(timeout=400) == 0, (folder / "said.txt").read_text()
    limited, signalled = (
        [path.read_text() for path in (folder / f".snakemake/slurm_logs/rule_train/3d_fullres_{fold}").iterdir()]
        for fold in range(2)
    )
    assert any("stopped: saved at step" in text for text in limited if "DUE TO TIME LIMIT" in text)
    assert any("stopped: saved at step" in text for text in signalled if "DUE TO TIME LIMIT" not in text)
    for fold in range(2):
        resumed = re.search(r"resumed: \S+ at step (\d+) after (\d+) s", log_of(folder, fold))
        assert resumed and int(resumed[1]) > 0
    assert int(resumed[2]) >= 5


def test_a_second_workflow_never_trains_into_the_checkpoints_of_a_job_that_the_first_left_behind(finished):
    folder, _ = finished
    forget_logs(folder)
    model = str(FOLDER / "fold_0" / "model.pt")
    first = start(folder, model, train={"minutes": 1})
    job = wait_for(lambda: "validation_loss" in log_of(folder, 0) and job_training(0))
    first.kill()
    first.wait()
    assert start(folder, "--unlock", train={"minutes": 1}).wait() == 0
    second = start(folder, model, train={"minutes": 1})
    who = rf"another process is training here: process \d+ on \S+, job {job} of SLURM \(scancel {job}\)"
    assert wait_for(lambda: re.search(who, (folder / "said.txt").read_text()))
    assert second.wait(timeout=300) == 0, (folder / "said.txt").read_text()
