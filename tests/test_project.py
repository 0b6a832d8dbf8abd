"""Promises about the project as a whole: which module imports what, and that versions and names agree everywhere."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from pipeline.paths import STAGES

ROOT = Path(__file__).parents[1]
HEAVY = {"train", "inference", "predict", "segment", "export"}
LIGHT = sorted(
    path.stem for path in (ROOT / "pipeline").iterdir() if path.stem not in {"nn", "__pycache__", "__init__"}
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(lines):
    found = (re.fullmatch(r"\s*-?\s*([A-Za-z0-9_.-]+)==(\S+)", line) for line in lines)
    return {match[1].lower().replace("_", "-"): match[2] for match in found if match}


CONSTRAINTS = pins((ROOT / "envs" / "constraints.txt").read_text().splitlines())


@pytest.mark.parametrize("module", [name for name in LIGHT if name.split(".")[0] not in HEAVY])
def test_light_modules_import_neither_torch_nor_monai(module):
    name = module.split(".")[0]
    code = f"import sys, pipeline.{name}; sys.exit(bool({{'torch', 'monai'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_monai_is_imported_without_packages_that_nothing_here_uses_of_it_and_others_still_get_them():
    unused = "{'matplotlib.pyplot', 'pandas', 'requests', 'scipy.optimize', 'torch.utils.tensorboard'}"
    code = f"import sys, pipeline.nn.networks; assert not {unused} & set(sys.modules)"
    code += "; import pandas, matplotlib.pyplot, scipy.optimize, scipy.sparse.linalg, torch.utils.tensorboard"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_every_stage_is_a_module_and_a_rule_in_the_order_of_the_flow():
    rules = re.findall(r"^(?:rule|checkpoint) (\w+):", (ROOT / "Snakefile").read_text(), re.MULTILINE)
    assert rules == ["all", *STAGES, "segment_shard", "segment", "export"]
    for stage in STAGES:
        assert (ROOT / "pipeline" / f"{stage}.py").exists() or (ROOT / "pipeline" / stage / "__main__.py").exists()


def test_conda_and_pip_pin_the_same_versions_and_pyproject_allows_them():
    environment = yaml.safe_load((ROOT / "envs" / "environment.yaml").read_text())
    conda = pins(environment["dependencies"][-1]["pip"])
    extras = PROJECT["optional-dependencies"]
    needed = [Requirement(text) for text in [*PROJECT["dependencies"], *extras["export"]]]
    assert sorted(conda) == sorted(requirement.name for requirement in needed)
    for requirement in needed:
        assert conda[requirement.name] == CONSTRAINTS[requirement.name]
        assert CONSTRAINTS[requirement.name] in requirement.specifier, requirement
    for requirement in map(Requirement, [*extras["slurm"], *extras["test"]]):
        assert CONSTRAINTS[requirement.name] in requirement.specifier, requirement


def test_both_profiles_let_a_killed_run_go_on():
    default, slurm = (
        yaml.safe_load((ROOT / name / "config.yaml").read_text()) for name in ("profiles/default", "envs/slurm")
    )
    assert default["rerun-incomplete"] is True
    assert default.items() <= slurm.items(), "one is read in place of the other"


def test_a_cluster_is_told_of_every_rule_that_opens_scans_what_memory_and_time_it_needs():
    profile = yaml.safe_load((ROOT / "envs" / "slurm" / "config.yaml").read_text())
    rules = re.split(r"^(?:rule|checkpoint) (\w+):", text := (ROOT / "Snakefile").read_text(), flags=re.MULTILINE)
    known = {name for name, body in zip(rules[1::2], rules[2::2], strict=True) if "mem_mb=" in body}
    local = set(re.findall(r"^    (\w+),$", text.partition("localrules:")[2].partition("\n\n\n")[0], re.MULTILINE))
    assert not known & set(profile["set-resources"]), "what a rule knows is not overwritten"
    assert known | set(profile["set-resources"]) | local == set(rules[1::2])
    assert profile["default-resources"]["runtime"] > 0
