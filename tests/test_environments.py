"""Where jobs may run: every way to the packages has the same versions, and Snakemake finds its way into each."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)$", (ROOT / "envs" / "constraints.txt").read_text(), re.M))
DOCKER = (ROOT / "envs" / "Dockerfile").read_text()
APPTAINER = (ROOT / "envs" / "apptainer.def").read_text()
CUDA = ("cuda-", "nvidia-", "triton")
INSTALLED = "/opt/segsnake"  # in an image
FAKE_APPTAINER = """#!/bin/bash
if [ "$1" = --version ]; then echo "apptainer version 1.3.6"; exit; fi
echo "$@" >>"$RECORD"
exec "${@: -3}"  # bash -c COMMAND
"""
FAKE_CONDA = """#!/bin/bash
case "$*" in
    "info --json") echo "{\\"conda_prefix\\": \\"$PREFIX\\", \\"platform\\": \\"linux-64\\"}" ;;
    --version) echo "conda 25.1.0" ;;
    config*) echo '{"get": {"channel_priority": "strict"}}' ;;
    "env create"*)
        folder=$(eval "echo ${@: -1}")
        mkdir -p "$folder/bin"
        printf '#!/bin/bash\\necho "$0" >>"$RECORD"\\nexec %s "$@"\\n' "$PYTHON" >"$folder/bin/python"
        chmod +x "$folder/bin/python" ;;
esac
"""


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def steps(recipe):
    """The shell commands of a recipe that install something."""
    return re.findall(r"^(?:RUN |    )((?:apt-get|pip) .*)$", recipe, re.M)


def copied_by_docker():
    pairs = (line.split()[1:] for line in DOCKER.splitlines() if line.startswith("COPY"))
    return {source: to + Path(source).name if to.endswith("/") else to for *sources, to in pairs for source in sources}


def copied_by_apptainer():
    section = APPTAINER.partition("%files\n")[2].partition("\n\n")[0]
    return dict(line.split() for line in section.splitlines())


def test_every_way_to_the_packages_has_the_python_that_is_tested_and_the_same_steps():
    conda = yaml.safe_load((ROOT / "envs" / "environment.yaml").read_text())["dependencies"]
    (python,) = re.findall(r"^FROM python:([0-9.]+)-slim$", DOCKER, re.M)
    assert f"From: python:{python}-slim\n" in APPTAINER
    assert f"python={python}" in conda
    assert steps(DOCKER) == steps(APPTAINER)
    assert any(f"--constraint {INSTALLED}/envs/constraints.txt" in step for step in steps(DOCKER))


def test_an_image_holds_the_project_without_its_tests():
    copied = copied_by_docker()
    assert copied == copied_by_apptainer()
    assert copied == {source: f"{INSTALLED}/{source}" for source in copied}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    left_out = {path for path in tracked if not any(Path(path).is_relative_to(source) for source in copied)}
    assert {path.split("/")[0] for path in left_out} == {".ci", ".gitignore", "Makefile", "envs", "tests"}
    assert {path for path in left_out if path.startswith("envs/") and "slurm" not in path} == {
        "envs/Dockerfile",
        "envs/apptainer.def",
    }


def test_what_an_image_holds_is_enough_to_be_installed_and_to_run(tmp_path):
    for source, target in copied_by_docker().items():
        copy = tmp_path / target.removeprefix("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(ROOT / source, copy) if (ROOT / source).is_dir() else shutil.copy(ROOT / source, copy)
    project, work = tmp_path / INSTALLED.removeprefix("/"), tmp_path / "work"
    work.mkdir()
    (work / "config.yaml").write_text("name: tiny\ncohort: demo\n")
    install = ["pip", "install", "--dry-run", "--no-deps", "--no-build-isolation", "--editable", project]
    for command in (install, ["snakemake", "--snakefile", project / "Snakefile", "--cores", "1", "--dry-run"]):
        done = subprocess.run([sys.executable, "-m", *command], cwd=work, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "results/tiny/report.html" in done.stdout


def test_what_is_installed_here_is_pinned_to_the_last_package_and_has_the_version_that_is_pinned():
    """Which CUDA libraries there are, if any, is up to the torch that pip has for the machine."""
    pinned = {plain(name): version for name, version in CONSTRAINTS.items()}
    texts = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["export"]]
    left, seen = [Requirement(text) for text in [*texts, *PROJECT["optional-dependencies"]["test"]]], set()
    while left:
        requirement = left.pop()
        name = plain(requirement.name)
        extras = requirement.extras or {""}
        if (name, *extras) in seen or not applies(requirement, {""}):
            continue
        seen.add((name, *extras))
        assert metadata.version(name).partition("+")[0] == pinned.get(name), name
        of_it = map(Requirement, metadata.requires(name) or [])
        left += [one for one in of_it if applies(one, extras) and not one.name.startswith(CUDA)]


def applies(requirement, extras):
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)


@pytest.fixture
def folder(tmp_path):
    """Plain folders whose scans `discover` only reads the names of."""
    for kind in ("images", "labels"):
        (tmp_path / "scans" / kind).mkdir(parents=True)
        for case in ("a", "b"):
            (tmp_path / "scans" / kind / f"{case}.nii.gz").touch()
    config = {"name": "tiny", "cohort": "scans", "folds": 2, "labels": {"1": "liver"}, "channels": {"0": "CT"}}
    (tmp_path / "config.json").write_text(json.dumps({**config, "container": "images/own.sif"}))
    return tmp_path


def discover_with(folder, method, program, **environment):
    """Run one job by a software deployment whose program is a script of ours."""
    path = folder / "bin" / method
    path.parent.mkdir()
    path.write_text(program)
    path.chmod(0o755)
    searched = os.pathsep.join([str(path.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "discover", "--cores", "1"]
    done = subprocess.run(
        [*command, "--sdm", method, "--configfile", "config.json"],
        cwd=folder,
        env={**os.environ, **environment, "PATH": searched, "RECORD": f"{folder}/record"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "results" / "tiny" / "discover" / "cases.tsv").exists()
    return (folder / "record").read_text()


def test_with_apptainer_a_job_runs_in_the_image_of_the_configuration(folder):
    record = discover_with(folder, "apptainer", FAKE_APPTAINER)
    assert record.startswith(f"exec --home {folder} ")
    assert "images/own.sif bash -c" in record
    assert f'export PYTHONPATH="{ROOT}" ' in record, "the code is the checkout's"


def test_with_conda_a_job_runs_in_the_environment_that_is_made_of_our_file(folder):
    prefix = folder / "conda"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "activate").write_text('export PATH="$1/bin:$PATH"\n')
    record = discover_with(folder, "conda", FAKE_CONDA, PREFIX=str(prefix), PYTHON=sys.executable)
    (made,) = (folder / ".snakemake" / "conda").glob("*.yaml")
    assert made.read_text() == (ROOT / "envs" / "environment.yaml").read_text()
    assert record.splitlines() == [str(made.with_suffix("") / "bin" / "python")]
