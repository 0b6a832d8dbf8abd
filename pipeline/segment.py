"""New scans and the trained models to masks, and to measures where the folder holds labels. Trains nothing.

Scans are NIfTI files in a folder (itself, `imagesTs`, `imagesTr` or `images`) or a single file; `case_0000`, `case_0001`, …
are the channels of one case. Labels lie beside them in `labelsTs`, `labelsTr` or `labels`. Every file is checked as the
cohort's are. A mask stays as long as the scan, the models and the settings that it was made of do.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pipeline import errors, evaluate, records
from pipeline.check.case import LABEL, LABEL_MISSING, check_case
from pipeline.check.problem import COLUMNS
from pipeline.config import PREVIOUS
from pipeline.errors import CohortError, TrainingError
from pipeline.images import Spacing, Volume
from pipeline.inference import read_setting
from pipeline.mirrors import find_mirrors
from pipeline.nn.checkpoints import Model, load_model
from pipeline.nn.device import Device, pick_device
from pipeline.paths import Results
from pipeline.predict import predict_case, write_prediction
from pipeline.preprocess import prepare, read_channels
from pipeline.records import Case, Cohort
from pipeline.restore import Prediction, restore_labels
from pipeline.windows import Setting, window_of

NIFTI = re.compile(r"(?P<name>.+?)\.nii(\.gz)?$")
CHANNEL_SUFFIX = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})$")
IMAGE_FOLDERS = ("imagesTs", "imagesTr", "images", ".")
LABEL_FOLDERS = ("labelsTs", "labelsTr", "labels")

Ensemble = tuple[list[Model], Setting]  # the folds of a configuration, and how they cut a scan


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
    digests = check_scans(cases, cohort, files)
    chosen = records.read_json(files.choice)["for_new_scans"]
    paths = {name: {fold: files.model(name, fold) for fold in folds.split(",")} for name in with_previous(chosen)}
    ensembles = {
        name: (
            [load_model(path, processor.where) for path in own.values()],
            read_setting(files.inference(name)).for_scans(len(cases)),
        )
        for name, own in paths.items()
    }
    models_used = {name: {fold: records.sha256(path) for fold, path in own.items()} for name, own in paths.items()}
    num_made = 0
    for case in tqdm(cases, desc="segment", mininterval=5):
        mask, record = files.segmented(case.case), files.segment_record(case.case)
        cut = [asdict(setting) for _, setting in ensembles.values()]
        made_of = {"scan": digests[case.case], "models": models_used, "settings": wanted, "inference": cut}
        if mask.exists() and record.exists() and records.read_json(record) == made_of:
            continue
        record.unlink(missing_ok=True)  # a kill after the new mask must not leave the record of the old one
        segment_case(case, mask, chosen, ensembles, processor, wanted)
        records.write_json(record, made_of)
        num_made += 1
    print(f"{len(cases)} masks in {files.segment}, {num_made} of them new")
    if labelled := [case for case in cases if case.label]:
        scores = [score for case in labelled for score in score_scan(case, files, cohort, tolerance_mm)]
        evaluate.write_tables(files.segment / "metrics.tsv", files.segment / "summary.tsv", scores)
        print(f"{len(labelled)} of them scored against their labels in {files.segment / 'metrics.tsv'}")


def with_previous(chosen: Sequence[str]) -> list[str]:
    """The configurations and those whose masks they refine, each once."""
    return list(dict.fromkeys([*chosen, *(PREVIOUS[name] for name in chosen if name in PREVIOUS)]))


def segment_case(
    case: Case,
    mask: Path,
    chosen: Sequence[str],
    ensembles: Mapping[str, Ensemble],
    device: Device,
    settings: dict[str, Any],
) -> None:
    """Write the mean of what the chosen configurations predict, each of them the mean of its folds."""
    channels, spacing_mm = read_channels(case)
    predict = partial(predict_scan, ensembles=ensembles, device=device, settings=settings, case=case.case)
    predictions = [predict(name, channels, spacing_mm) for name in chosen]
    del channels  # the networks need the room
    write_prediction(mask, predictions, ensembles[chosen[0]][0][0].plan, case.channels[0])


def predict_scan(
    name: str,
    channels: Volume,
    spacing_mm: Spacing,
    *,
    ensembles: Mapping[str, Ensemble],
    device: Device,
    settings: dict[str, Any],
    case: str,
) -> Prediction:
    """What one configuration makes of a scan; a cascade has the mask before it predicted first."""
    models, setting = ensembles[name]
    plan, previous = models[0].plan, None
    predict = partial(predict_scan, ensembles=ensembles, device=device, settings=settings, case=case)
    if plan.previous:
        previous = restore_labels([predict(plan.previous, channels, spacing_mm)], plan)
    prepared = prepare(channels, spacing_mm, plan, previous=previous)
    mirrors = find_mirrors(plan, settings["train_mirror"])
    width = max(model.width for model in models)
    window = window_of(setting, plan, width, prepared.image.shape[1:], mirrors, settings["memory_gib"])
    return predict_case(models, prepared.image, prepared.placement, device, window, case=case)


def score_scan(case: Case, files: Results, cohort: Cohort, tolerance_mm: float) -> evaluate.Scores:
    masks = {"segment": files.segmented(case.case)}
    return evaluate.score_case(case, masks, cohort=cohort, tolerance_mm=tolerance_mm)


def check_scans(cases: Sequence[Case], cohort: Cohort, files: Results) -> dict[str, list[str]]:
    """By case the sha256 of its channels. What is wrong with any file stands in `problems.tsv`; a label may be missing.

    Raises:
        CohortError: a file that `check` would refuse.
    """
    reports = [check_case(case, cohort.declared) for case in tqdm(cases, desc="check", mininterval=5)]
    problems = [problem for report in reports for problem in report.problems if problem.rule != LABEL_MISSING]
    records.write_table(files.segment_problems, COLUMNS, map(asdict, problems))
    if refused := [problem for problem in problems if problem.severity == "refuse"]:
        first = refused[0]
        raise CohortError(
            f"{first.file}: {first.found}, {first.expected} expected. {first.do} "
            f"No mask was made; {len(refused)} refused file(s) stand in {files.segment_problems}."
        )
    return {
        case.case: [str(row["sha256"]) for row in report.rows if row["role"] != LABEL]
        for case, report in zip(cases, reports, strict=True)
    }


def find_scans(folder: Path, num_channels: int) -> list[Case]:
    """The scans of a folder or file, with their labels where there are any.

    Raises:
        CohortError: no scan, or other channels than the models were trained with.
    """
    if folder.is_file():
        return [_case(_case_id(folder, num_channels), [folder], num_channels, label=None)]
    for part in IMAGE_FOLDERS:
        found = sorted(path for path in (folder / part).glob("*") if NIFTI.match(path.name) and path.is_file())
        if found:
            break
    else:
        raise CohortError(f"{folder}: no NIfTI file (.nii, .nii.gz) there. Give the folder that holds the scans.")
    channels: dict[str, list[Path]] = {}
    for path in found:
        channels.setdefault(_case_id(path, num_channels), []).append(path)
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


def _case_id(path: Path, num_channels: int) -> str:
    """The name without its channel; where there is one channel, the number of `patient_0001` is the patient's."""
    split = CHANNEL_SUFFIX.match(_name(path))
    return split["case"] if split and (num_channels > 1 or split["channel"] == "0000") else _name(path)


def _case(case: str, channels: list[Path], num_channels: int, label: Path | None) -> Case:
    names = [_name(path) for path in channels]
    expected = [f"{case}_{channel:04d}" for channel in range(num_channels)]
    if names != expected and not (num_channels == 1 and names == [case]):
        raise CohortError(
            f"{case}: {', '.join(path.name for path in channels)} found in {channels[0].parent}, "
            f"{', '.join(f'{name}.nii.gz' for name in expected)} expected: one file per channel, numbered as in training. "
            "Rename the files or add what is missing."
        )
    return Case(case, case, fold=0, label=label, channels=tuple(channels))


if __name__ == "__main__":
    errors.run(main)
