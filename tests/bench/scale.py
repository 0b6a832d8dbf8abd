"""What the size of a cohort costs: `snakemake -n`, and the stages that read every case, with 100, 1,000 and 10,000 cases.

`python -m tests.bench.scale --folder .bench/scale`. Scans are of 16 x 16 x 16 voxels, so that what is measured is what a case
costs whatever its size. Dry runs: of a cohort that nobody has looked at, after `check`, and with everything done.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from pipeline import errors, records
from pipeline.flow import Run
from tests.bench.ours import ROOT, machine, record

SHAPE = (16, 16, 16)
STAGES = ("discover", "check", "fingerprint")
DIGEST = "0" * 64
MEASURE = """
import resource, subprocess, sys, time
begin = time.monotonic()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(time.monotonic() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss // 1024)
sys.exit(done.returncode and done.stdout)
"""


@dataclass(frozen=True)
class Cost:
    """Seconds on the wall and of processors, and memory at most."""

    seconds: float
    processor_s: float
    mib: int

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s ({self.processor_s:.2f} s of a processor), {self.mib} MiB"


def main(folder: Path = Path(".bench/scale"), sizes: str = "100,1000,10000", threads: int = 2) -> None:
    for size in map(int, sizes.split(",")):
        place = folder.resolve() / str(size)
        shutil.rmtree(place, ignore_errors=True)
        write_cohort(place / "scans", size)
        config = {"name": "scale", "cohort": "scans", "threads": threads, "device": "cpu"}
        (place / "config.yaml").write_text(json.dumps(config))
        run = Run(config)
        dry = {"nothing done": snakemake(place, "--dry-run")}
        rows = []
        for stage in STAGES:
            snakemake(place, stage, "--cores", str(threads))
            took = records.read_table(place / run.files.cost(stage))[0]
            seconds, processor_s = float(took["s"]), float(took["cpu_time"])
            each = f"{1000 * processor_s / size:.2f} ms of a processor a case; {seconds:.1f} s, {took['max_rss']} MiB"
            rows.append((stage, each))
            if stage == "check":
                dry["after check"] = snakemake(place, "--dry-run")
        finish(place, run)
        dry["all done"] = snakemake(place, "--dry-run")
        said = [(f"dry run, {state}", str(cost)) for state, cost in dry.items()]
        record([("scale", name, figure, f"{size} cases, {machine(threads)}") for name, figure in [*said, *rows]])
        shutil.rmtree(place)


def write_cohort(place: Path, size: int) -> None:
    """Random scans, no two alike, with two labels."""
    random, entries = np.random.default_rng(0), []
    for index in range(size):
        scan = random.integers(0, 1000, SHAPE).astype(np.int16)
        label = np.zeros(SHAPE, np.uint8)
        label[4:12, 4:12, 4:8], label[4:12, 4:12, 8:12] = 1, 2
        for kind, array in (("imagesTr", scan), ("labelsTr", label)):
            path = place / kind / f"case_{index:05d}.nii"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.eye(4)), path)
        entries.append({key: f"{key}sTr/case_{index:05d}.nii" for key in ("image", "label")})
    content = {"labels": {"0": "background", "1": "a", "2": "b"}, "modality": {"0": "MRI"}, "training": entries}
    (place / "dataset.json").write_text(json.dumps(content))


def snakemake(place: Path, *arguments: str) -> Cost:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), *arguments]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *command], cwd=place, check=True, stdout=subprocess.PIPE, text=True
    )
    seconds, processor_s, mib = done.stdout.split()
    return Cost(float(seconds), float(processor_s), int(mib))


def finish(place: Path, run: Run) -> None:
    """Files of the size that the other stages make, and Snakemake's word for it that they are done."""
    files, cases = run.files, records.read_cases(place / run.files.checked_cases)
    single = [files.choice, files.metrics, files.summary, files.comparison, files.report]
    for configuration in run.configurations:
        single += [files.plan(configuration), files.inference(configuration)]
        for fold in run.run_folds:
            own = [case.case for case in records.cases_of_fold(cases, fold)]
            names = ("image.npy", "classes.npy", "locations.npy", "placement.json")
            arrays = {files.arrays(configuration, case) / name: DIGEST for case in own for name in names}
            records.write_file_list(place / files.preprocessed(configuration, fold), arrays)
            masks = {files.mask(configuration, case): DIGEST for case in own}
            records.write_file_list(place / files.predicted(configuration, fold), masks)
            single.append(files.model(configuration, fold))
            for gone_by_now in run.probabilities(configuration, fold):
                (place / gone_by_now).mkdir(parents=True)
    for path in single:
        records.write_json(place / path, {"mem_mb": 1})
    snakemake(place, "--touch", "--no-hooks", "--cores", "1")


if __name__ == "__main__":
    errors.run(main)
