"""New scans and the trained models to masks, and to measures where the folder holds labels. Trains nothing.

Scans are NIfTI files in a folder (itself, `imagesTs`, `imagesTr` or `images`) or a single file; `case_0000`, `case_0001`, …
are the channels of one case. Labels lie beside them in `labelsTs`, `labelsTr` or `labels`. Finished cases are skipped.
"""

import json
import re
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from pipeline import errors, evaluate, records
from pipeline.errors import CohortError, TrainingError
from pipeline.nn.checkpoints import load_model
from pipeline.nn.device import pick_device
from pipeline.paths import Results
from pipeline.predict import predict_case, write_prediction
from pipeline.preprocess import prepare, read_channels
from pipeline.records import Case, Cohort

NIFTI = re.compile(r"(?P<name>.+?)\.nii(\.gz)?$")
CHANNEL_SUFFIX = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})$")
IMAGE_FOLDERS = ("imagesTs", "imagesTr", "images", ".")
LABEL_FOLDERS = ("labelsTs", "labelsTr", "labels")


def main(
    results: str,
    scans: str,
    folds: str,
    settings: str,
    tolerance_mm: float,
    device: str = "auto",
    threads: int = 1,
) -> None:
    files = Results(results)
    torch.set_num_threads(threads)
    if not scans:
        raise CohortError("segment: no scans given. Say where they are: `snakemake segment --config scans=DIR`.")
    if not files.choice.exists():
        raise TrainingError(f"{files.choice}: not there, so nothing is trained yet. Run `snakemake --cores 8` first.")
    processor, wanted = pick_device(device), json.loads(settings)
    cohort = records.read_cohort(files.cohort)
    cases = find_scans(Path(scans), len(cohort.channels))
    ensembles = [
        [load_model(files.model(name, fold), processor.where) for fold in folds.split(",")]
        for name in records.read_json(files.choice)["for_new_scans"]
    ]
    for case in tqdm(cases, desc="segment", mininterval=5):
        mask = files.segment / f"{case.case}.nii.gz"
        if not mask.exists():
            channels, spacing_mm = read_channels(case)
            total = np.zeros(1, np.float32)
            for models in ensembles:
                plan = models[0].plan
                prepared = prepare(channels, spacing_mm, plan)
                placement = prepared.placement
                total = total + predict_case(models, prepared.image, placement, processor, wanted, case=case.case)
            write_prediction(mask, total / np.float32(len(ensembles)), plan, case.channels[0])
    print(f"{len(cases)} masks in {files.segment}")
    if labelled := [case for case in cases if case.label]:
        scores = [score for case in labelled for score in score_scan(case, files, cohort, tolerance_mm)]
        evaluate.write_tables(files.segment / "metrics.tsv", files.segment / "summary.tsv", scores)
        print(f"{len(labelled)} of them scored against their labels in {files.segment / 'metrics.tsv'}")


def score_scan(case: Case, files: Results, cohort: Cohort, tolerance_mm: float) -> evaluate.Scores:
    masks = {"segment": files.segment / f"{case.case}.nii.gz"}
    return evaluate.score_case(case, masks, cohort=cohort, tolerance_mm=tolerance_mm)


def find_scans(folder: Path, num_channels: int) -> list[Case]:
    """The scans of a folder or file, with their labels where there are any.

    Raises:
        CohortError: no scan, or another number of channels than the models were trained with.
    """
    if folder.is_file():
        return [_case(_name(folder), [folder], num_channels, label=None)]
    for part in IMAGE_FOLDERS:
        found = sorted(path for path in (folder / part).glob("*") if NIFTI.match(path.name) and path.is_file())
        if found:
            break
    else:
        raise CohortError(f"{folder}: no NIfTI file (.nii, .nii.gz) there. Give the folder that holds the scans.")
    channels: dict[str, list[Path]] = {}
    for path in found:
        split = CHANNEL_SUFFIX.match(_name(path))
        channels.setdefault(split["case"] if split else _name(path), []).append(path)
    names = [_name(path) for path in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise CohortError(f"{folder}: two files with the same name: {', '.join(twice)}. Keep one of .nii and .nii.gz.")
    labels = {
        _name(path): path for part in LABEL_FOLDERS for path in (folder / part).glob("*") if NIFTI.match(path.name)
    }
    return [_case(case, paths, num_channels, labels.get(case)) for case, paths in channels.items()]


def _name(path: Path) -> str:
    match = NIFTI.match(path.name)
    if not match:
        raise CohortError(f"{path}: NIfTI (.nii, .nii.gz) expected.")
    return match["name"]


def _case(case: str, channels: list[Path], num_channels: int, label: Path | None) -> Case:
    if len(channels) != num_channels:
        raise CohortError(
            f"{case}: {len(channels)} channel file(s), {num_channels} expected as in training. "
            "Name the files case_0000.nii.gz, case_0001.nii.gz, … in channel order."
        )
    return Case(case, case, fold=0, label=label, channels=tuple(channels))


if __name__ == "__main__":
    errors.run(main)
