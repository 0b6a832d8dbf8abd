"""How much of a run's processor time is not work on scans: Snakemake itself, and the start of each job's Python.

`python -m tests.bench.startup --cohort ../shared/data/hippocampus --folder .bench/startup`: the whole flow with a training of a
few iterations, in three calls, so that the training can be left out of the account.
"""

import json
import re
import resource
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pipeline import errors
from pipeline.flow import Run
from tests.bench.ours import ROOT, machine, record

ITERATIONS = 3
MODULES = {  # that the processes of a job import; what is not here has the name of its stage
    "check": ["check.__main__"],
    "plan": ["plan.__main__", "nn.probe"],
    "report": ["report.__main__"],
}
ENGINE = """
import atexit, resource, runpy, sys
def tell():
    own, jobs = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print("processor", own.ru_utime + own.ru_stime, jobs.ru_utime + jobs.ru_stime, flush=True)
atexit.register(tell)
runpy.run_module("snakemake", run_name="__main__")
"""


@dataclass(frozen=True)
class Part:
    """Processor seconds of one call: Snakemake's own, all of its jobs', and how many jobs of each stage there were."""

    engine_s: float
    jobs_s: float
    jobs: Counter[str]

    def start_s(self, imports: dict[str, float]) -> float:
        return sum(number * imports[stage] for stage, number in self.jobs.items())


def main(cohort: Path, folder: Path = Path(".bench/startup"), threads: int = 2) -> None:
    place = folder.resolve()
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    config = {"name": "startup", "cohort": str(cohort.resolve()), "threads": threads, "device": "cpu"}
    run = Run({**config, "train": {"iterations": ITERATIONS}})
    (place / "config.yaml").write_text(json.dumps({**config, "train": {"iterations": ITERATIONS}}))
    jobs = [(name, fold) for name in run.configurations for fold in run.run_folds]
    prepared, models = ([str(of(*job)) for job in jobs] for of in (run.files.preprocessed, run.files.model))
    before, training, after = (snakemake(place, threads, *targets) for targets in (prepared, models, ["all"]))
    imports = {stage: import_s(stage) for stage in {*before.jobs, *training.jobs, *after.jobs}}
    rows = []
    for name, parts in (("without training", [before, after]), ("training included", [before, training, after])):
        engine_s, start_s = sum(part.engine_s for part in parts), sum(part.start_s(imports) for part in parts)
        total_s = sum(part.engine_s + part.jobs_s for part in parts)
        figure = f"{100 * (engine_s + start_s) / total_s:.1f} % of {total_s:.0f} s of processors"
        rows.append((name, f"{figure}: Snakemake {engine_s:.0f} s, start of jobs {start_s:.0f} s"))
    each = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in sorted(imports.items()))
    rows.append(("start of one job", each))
    record(
        [
            ("start-up", name, figure, f"{cohort.name}, 2d and 3d_fullres, 5 folds, {machine(threads)}")
            for name, figure in rows
        ]
    )


def snakemake(place: Path, threads: int, *targets: str) -> Part:
    command = ["--snakefile", str(ROOT / "Snakefile"), "--cores", str(threads), *targets]
    done = subprocess.run(
        [sys.executable, "-c", ENGINE, *command], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert not done.returncode, done.stdout[-4000:]
    engine_s, jobs_s = map(float, done.stdout.split("processor ")[-1].split())
    started = re.findall(r"^local(?:rule|checkpoint) (\w+):$", done.stdout, re.MULTILINE)
    return Part(engine_s, jobs_s, Counter(stage for stage in started if stage != "all"))


def import_s(stage: str) -> float:
    """Until a job of the stage begins its work; the second of two starts, when its files are in memory."""
    modules = ", ".join(f"pipeline.{module}" for module in MODULES.get(stage, [stage]))
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", f"import typer, {modules}"], cwd=ROOT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    errors.run(main)
