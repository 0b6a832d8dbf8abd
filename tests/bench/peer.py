"""The peer, nnU-Net, in an environment of its own, with a cohort of ours in its layout and our folds as its splits.

Downloads packages on its first call; `make test` never calls it. Knows nothing of what is measured.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline import disk, errors, records
from pipeline.check.case import check_case
from pipeline.check.cohort import label_volumes_ml, with_folds
from pipeline.check.problem import Asked
from pipeline.errors import CohortError, PipelineError
from pipeline.layouts import msd
from pipeline.layouts.found import Wanted
from pipeline.records import Case, Cohort

ROOT = Path(__file__).parents[2]
INSIDE = Path(__file__).with_name("inside_peer.py")
PACKAGE = "nnunetv2==2.8.1"
DATASET = "Dataset001_bench"
CONFIGURATION = "3d_fullres"
NUM_FOLDS, SEED = 5, 12345  # our defaults, stated because the peer's splits are written from them


@dataclass(frozen=True)
class Peer:
    """Everything of the peer below one folder: environment, raw and preprocessed data, results."""

    folder: Path
    threads: int

    @property
    def python(self) -> Path:
        return self.folder / "environment" / "bin" / "python"

    def results(self, name: str) -> Path:
        return self.folder / "results" / name

    def run(self, *command: str | Path, results: str = "", workers: int = 1) -> str:
        """Standard output of a program of the peer's environment, which keeps what it trains below `results`.

        Raises:
            PipelineError: it failed.
        """
        environment = {
            **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_NUM_THREADS")},
            **{f"nnUNet_{part}": str(self.folder / part) for part in ("raw", "preprocessed")},
            "nnUNet_results": str(self.results(results)),
            "nnUNet_n_proc_DA": str(workers),
            "nnUNet_def_n_proc": str(self.threads),
        }
        done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise PipelineError(f"{command[0]}: failed.\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        return done.stdout


def main(cohort: str, folder: str = ".bench", threads: int = os.cpu_count() or 1) -> None:
    """Install the peer and preprocess a cohort in MSD layout for it, as far as that is not done yet."""
    prepare(Path(cohort), Path(folder), threads)


def prepare(cohort: Path, folder: Path, threads: int) -> Peer:
    """The peer, installed, with the cohort planned and preprocessed and our folds as its splits."""
    peer = installed(folder, threads)
    description, cases = folds_of(cohort)
    splits = peer.folder / "preprocessed" / DATASET / "splits_final.json"
    if not splits.exists():
        write_raw(description, cases, peer.folder / "raw" / DATASET)
        planner = peer.python.with_name("nnUNetv2_plan_and_preprocess")
        wanted = ("-d", "1", "-c", CONFIGURATION, "-np", str(threads), "--verify_dataset_integrity")
        peer.run(planner, *wanted)
        with disk.written_whole(splits) as partial:
            partial.write_text(json.dumps(splits_of(cases), indent=1))
    return peer


def installed(folder: Path, threads: int) -> Peer:
    """The peer below `folder`, which is installed there if it is not yet."""
    peer = Peer((folder / "peer").resolve(), threads)
    if not (peer.folder / "environment" / "ready").exists():
        install(peer)
    return peer


def install(peer: Peer) -> None:
    """A virtual environment with the torch that we pin, so that both systems compute with the same kernels.

    Raises:
        PipelineError: pip would bring CUDA packages to a machine that needs none, or fails.
    """
    constraints = (ROOT / "envs" / "constraints.txt").read_text()
    torch = next(line for line in constraints.splitlines() if re.match(r"torch==", line))
    subprocess.run([sys.executable, "-m", "venv", str(peer.folder / "environment")], check=True)
    pip = (peer.python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install")
    report = json.loads(peer.run(*pip, "--dry-run", "--report", "-", torch, PACKAGE))
    names = [package["metadata"]["name"].lower() for package in report["install"]]
    cuda = [name for name in names if name.startswith(("nvidia-", "cuda-", "triton"))]
    if cuda and not Path("/dev/nvidiactl").exists():
        raise PipelineError(
            f"{peer.folder}: pip would install {', '.join(cuda)}, yet here is no GPU. Let pip find a CPU build of {torch}."
        )
    peer.run(*pip, torch)
    peer.run(*pip, torch, PACKAGE)
    (peer.folder / "environment" / "ready").touch()


def folds_of(cohort: Path) -> tuple[Cohort, list[tuple[Case, int]]]:
    """The labelled cases of a cohort in MSD layout, each with the fold that `check` gives it."""
    found = msd.read(cohort, Wanted())
    look = partial(check_case, asked=Asked(declared=found.cohort.declared), copies=Path)  # of NIfTI files it makes none
    volumes = {case.case: label_volumes_ml(look(case), found.cohort) for case in found.cases}
    return found.cohort, [(case, case.fold) for case in with_folds(found.cases, volumes, NUM_FOLDS, SEED) if case.label]


def splits_of(cases: list[tuple[Case, int]]) -> list[dict[str, list[str]]]:
    return [
        {
            "train": [case.case for case, other in cases if other != fold],
            "val": [case.case for case, other in cases if other == fold],
        }
        for fold in range(NUM_FOLDS)
    ]


def write_raw(description: Cohort, cases: list[tuple[Case, int]], folder: Path) -> None:
    """nnU-Net's raw layout, with links to the scans.

    Raises:
        CohortError: labels that it cannot train, or files of another kind.
    """
    if list(description.labels) != list(range(len(description.labels))):
        raise CohortError(
            f"{description.name}: labels {list(description.labels)}, consecutive ones expected by the peer."
        )
    for case, _ in cases:
        assert case.label is not None
        links = {folder / "labelsTr" / f"{case.case}.nii.gz": case.label}
        links |= {folder / "imagesTr" / f"{case.case}_{n:04d}.nii.gz": image for n, image in enumerate(case.channels)}
        for link, file in links.items():
            if not file.name.endswith(".nii.gz"):
                raise CohortError(f"{case.case}: {file} found, .nii.gz expected by this benchmark. Compress the files.")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(file.resolve())
    content = {
        "channel_names": {str(index): name for index, name in description.channels.items()},
        "labels": {name: value for value, name in description.labels.items()},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    records.write_json(folder / "dataset.json", content)


if __name__ == "__main__":
    errors.run(main)
