"""The first line of a job's log runs the job again, wherever it is pasted."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from pipeline import errors, flow
from pipeline.phantoms import write_cohort

ROOT = Path(__file__).parents[1]
DISCOVER = [sys.executable, "-m", "pipeline.discover", "--results", "it's mine", "--cohort", "scans"]


def test_the_first_line_of_a_log_runs_the_job_again_from_any_folder_and_in_its_threads(tmp_path):
    folder = tmp_path / "a folder"
    write_cohort(folder / "scans", num_cases=4, size=0.5)
    job = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}
    command = [*DISCOVER, "--settings", flow.Run({"name": "a", "cohort": "scans", "folds": 2}).cohort_settings]
    done = subprocess.run(command, cwd=folder, env=job, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pasted = done.stdout.splitlines()[0]
    assert "OMP_NUM_THREADS=2 OPENBLAS_NUM_THREADS=1" in pasted

    made = folder / "results" / "it's mine" / "discover" / "cases.tsv"
    before = made.read_bytes()
    made.unlink()
    again = subprocess.run(["bash", "-c", pasted], cwd="/", env={"PATH": os.environ["PATH"]}, capture_output=True)
    assert again.returncode == 0, again.stderr
    assert made.read_bytes() == before
    assert again.stdout.decode() == done.stdout, "with the same first line"


def test_processes_that_train_together_are_started_again_together(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-u", "-m", "pipeline.train", "--results", "demo"])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    assert shlex.split(errors.command())[-10:] == [*launch, "-m", "pipeline.train", "--results", "demo"]


def test_of_several_processes_the_first_speaks_and_a_terminal_is_not_told_what_it_just_said(monkeypatch, capsys):
    said = []
    monkeypatch.setattr(errors, "command", lambda: "the command")
    monkeypatch.setattr(sys, "argv", ["stage"])
    for rank, is_terminal in ((None, False), ("0", False), ("1", False), (None, True)):
        monkeypatch.setattr(sys.stdout, "isatty", lambda is_terminal=is_terminal: is_terminal)
        monkeypatch.setenv("RANK", rank) if rank else monkeypatch.delenv("RANK", raising=False)
        try:
            errors.run(lambda: None)
        except SystemExit as end:
            assert end.code == 0
        said.append(capsys.readouterr().out)
    assert said == ["the command\n", "the command\n", "", ""]
