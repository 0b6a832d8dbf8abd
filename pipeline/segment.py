"""New scans and the trained models to masks, and what is unusual about them. Trains nothing.

One job may take a share of the scans. Every file is checked as the cohort's are; a scan that is refused, or fails, is put on
record, and the others go on. A mask stays as long as the scan, the models and the settings that it was made of do.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pipeline import errors, records
from pipeline.check.case import LABEL, LABEL_MISSING, check_case
from pipeline.check.problem import Asked, Problem
from pipeline.choice import operations_for_new_scans
from pipeline.config import with_previous
from pipeline.errors import CohortError, ImageError, PipelineError, TrainingError
from pipeline.formats import standardise
from pipeline.images import Segmentation, Spacing, Volume, grid_of, open_image, ras_grid, write_mask, write_volume
from pipeline.intensity import nonzero_box
from pipeline.mirrors import find_mirrors
from pipeline.nn.checkpoints import Model, load_model
from pipeline.nn.device import Device, pick_device
from pipeline.novelty import Seen, look_at, seen_in_training, unusual, unusual_volumes, volumes_ml
from pipeline.paths import Results
from pipeline.plan import Plan
from pipeline.postprocess import Operations, postprocess
from pipeline.predict import predict_case
from pipeline.preprocess import prepare, read_channels
from pipeline.records import Case, Cohort
from pipeline.restore import Prediction, restore_labels, restore_values
from pipeline.scans import Scan, find_scans
from pipeline.segment_tables import FoundLabel, Outcome, read_outcome, write_outcome
from pipeline.uncertainty import Watch
from pipeline.windows import Setting, read_setting, window_of

MAPS = ("entropy", "disagreement")
LOW_EXPECTED_DSC = 0.7  # below, two masks are not said to agree well; Zijdenbos et al. 1994


@dataclass(frozen=True)
class Trained:
    """What scans are segmented with, and what they are compared with; `made_of` identifies the former.

    Of each configuration the networks of its folds and how they cut a scan; those that are `chosen` are averaged, others are
    there because one of these refines their masks. `operations` clean what comes of it.
    """

    chosen: list[str]
    operations: Operations
    ensembles: dict[str, tuple[list[Model], Setting]]
    made_of: dict[str, str]
    cohort: Cohort
    seen: list[Seen]
    volumes_ml: list[dict[str, float]]
    device: Device
    settings: dict[str, Any]

    @property
    def plan(self) -> Plan:
        """Of the first configuration; labels, channels and task are those of all."""
        return self.ensembles[self.chosen[0]][0][0].plan

    @property
    def maps(self) -> list[str]:
        """Kinds of maps of uncertainty that are wanted and that there can be."""
        has_folds = any(len(self.ensembles[name][0]) > 1 for name in self.chosen)
        is_possible = (self.plan.task == "segmentation", has_folds)
        return list(compress(MAPS, is_possible)) if self.settings["uncertainty"] else []


def main(
    results: str,
    scans: str,
    folds: str,
    settings: str,
    shard: int = 0,
    shards: int = 1,
    device: str = "auto",
    threads: int = 1,
) -> None:
    files = Results(results)
    torch.set_num_threads(threads)
    if not scans:
        raise CohortError("segment: no scans given. Say where they are: `snakemake segment --config scans=DIR`.")
    if not files.choice.exists():
        raise TrainingError(f"{files.choice}: not there, so nothing is trained yet. Run `snakemake --cores 8` first.")
    num_channels = len(records.read_cohort(files.cohort).channels)
    found = find_scans(Path(scans), num_channels, files.converted)[shard::shards]
    trained = load_trained(files, folds.split(","), pick_device(device), json.loads(settings), len(found))
    done = [segment_scan(scan, trained, files) for scan in tqdm(found, desc="segment", mininterval=5)]
    records.write_cases(files.segment_shard(shard), [case for case, _ in done])
    print(f"segment: {len(found)} scans, {sum(is_new for _, is_new in done)} masks in {files.segment} are new")


def load_trained(
    files: Results, folds: Sequence[str], device: Device, settings: dict[str, Any], num_scans: int
) -> Trained:
    """`num_scans`: whether compiling pays depends on it, yet a mask is as good either way and stays."""
    choice, cohort = records.read_json(files.choice), records.read_cohort(files.cohort)
    chosen: list[str] = choice["for_new_scans"]
    operations = operations_for_new_scans(choice, [target.label for target in cohort.targets])
    cleaning = "; ".join(f"{label}: {operation.words()}" for label, operation in operations.items())
    ensembles, made_of = {}, {"chosen": " ".join(chosen), "settings": json.dumps(settings, sort_keys=True)}
    made_of |= {"cleaning": cleaning}
    for name in with_previous(chosen):
        setting = read_setting(files.inference(name))
        paths = {fold: files.model(name, fold) for fold in folds}
        ensembles[name] = ([load_model(path, device.where) for path in paths.values()], setting.for_scans(num_scans))
        made_of |= {name: json.dumps(asdict(setting))}
        made_of |= {f"{name}/fold_{fold}": records.sha256(path) for fold, path in paths.items()}
    fingerprint = records.read_json(files.fingerprint)
    return Trained(
        chosen=chosen,
        operations=operations,
        ensembles=ensembles,
        made_of=made_of,
        cohort=cohort,
        seen=seen_in_training(fingerprint),
        volumes_ml=[case.get("volumes_ml", {}) for case in fingerprint["cases"]],
        device=device,
        settings=settings,
    )


def segment_scan(scan: Scan, trained: Trained, files: Results) -> tuple[Case, bool]:
    """Put on record what becomes of one scan.

    Returns:
        The case with the files that were read; True if its mask was made, False if it was kept or there can be none.
    """
    case, begin, problems = scan.case, time.monotonic(), list[Problem]()
    record = files.segment_record(case.case)
    wanted = [files.segmented(case.case), *(files.uncertainty(case.case, kind) for kind in trained.maps)]
    try:
        case, digests = check_scan(scan, trained, files, problems)
        made_of = {**digests, **trained.made_of}
        known = read_outcome(record)
        if known and known.made_of == made_of and all(path.exists() for path in wanted):
            write_outcome(record, replace(known, problems=tuple(problems)))  # those of its label may be new
            return case, False
        forget(case, files)
        flags, labels = segment_case(case, trained, files)
        outcome = Outcome(status="done", made_of=made_of, flags=tuple(flags), labels=tuple(labels))
    except (PipelineError, MemoryError, torch.OutOfMemoryError) as error:
        forget(case, files)
        outcome = Outcome(status="failed", reason=" ".join(str(error).split()) or type(error).__name__)
        tqdm.write(f"{case.case}: no mask. {outcome.reason}")
    seconds = round(time.monotonic() - begin, 2)
    write_outcome(record, replace(outcome, problems=tuple(problems), seconds=seconds))
    return case, outcome.status == "done"


def forget(case: Case, files: Results) -> None:
    """Remove what was made of another scan of this name, or by other models; the record first, in case of a kill."""
    maps = (files.uncertainty(case.case, kind) for kind in MAPS)
    for path in (files.segment_record(case.case), files.segmented(case.case), *maps):
        path.unlink(missing_ok=True)


def check_scan(scan: Scan, trained: Trained, files: Results, problems: list[Problem]) -> tuple[Case, dict[str, str]]:
    """The case with the files to read, and the sha256 of each channel by its role. A label may be missing.

    What is wrong with any file is added to `problems`.

    Raises:
        PipelineError: a channel that no mask can be made of.
    """
    case = scan.case
    if scan.refused:
        raise CohortError(scan.refused)
    if scan.series:
        folder = scan.series[0].parent
        mended = standardise(folder, case.channels[0], series=scan.series)
        problems += [replace(problem, case=case.case, file=str(folder)) for problem in mended]
    asked = Asked(declared=trained.cohort.declared, **trained.settings["asked"])
    report = check_case(case, asked, files.converted)
    problems += [problem for problem in report.problems if problem.rule != LABEL_MISSING]
    refused = [one for one in problems if one.severity == "refuse" and one.file != str(case.label)]
    if refused:
        first = refused[0]
        raise ImageError(f"{first.file}: {first.found}, {first.expected} expected. {first.do}")
    return report.case, {str(row["role"]): str(row["sha256"]) for row in report.rows if row["role"] != LABEL}


def segment_case(case: Case, trained: Trained, files: Results) -> tuple[list[str], list[FoundLabel]]:
    """Write the mean of what the configurations predict, each of them the mean of its folds, and maps if wanted.

    Returns:
        What is unusual, in words, and the labels or regions of the mask.
    """
    channels, spacing_mm = read_channels(case)
    plan, stored = trained.plan, grid_of(open_image(case.channels[0]))
    seen = look_at(channels, nonzero_box(channels), ras_grid(stored), stored.orientation)
    each = [predict_scan(name, channels, spacing_mm, trained, case.case, trained.maps) for name in trained.chosen]
    predictions, watches = [list(one) for one in zip(*each, strict=True)]
    del channels  # the networks need the room
    flags = unusual(seen, trained.seen, plan.channels, plan.normalisation)
    found: list[FoundLabel] = []
    if plan.task == "regression":
        write_volume(files.segmented(case.case), restore_values(predictions), case.channels[0])
    else:
        labels = postprocess(restore_labels(predictions, plan), spacing_mm, trained.operations, trained.cohort)
        write_mask(files.segmented(case.case), labels, case.channels[0])
        found = found_labels(labels, spacing_mm, watches, trained.cohort, plan)
        flags += unusual_volumes({one.name: one.volume_ml for one in found}, trained.volumes_ml)
        flags += [
            f"expected DSC of {one.name} {one.expected_dsc:.2f}, {LOW_EXPECTED_DSC} or more in a good mask"
            for one in found
            if one.expected_dsc is not None and one.expected_dsc < LOW_EXPECTED_DSC
        ]
    for kind in trained.maps:
        maps = [
            replace(prediction, slabs=watch.maps[kind])
            for prediction, watch in zip(predictions, watches, strict=True)
            if watch.maps[kind]
        ]
        write_volume(files.uncertainty(case.case, kind), restore_values(maps), case.channels[0])
    return flags, found


def predict_scan(
    name: str, channels: Volume, spacing_mm: Spacing, trained: Trained, case: str, maps: Sequence[str]
) -> tuple[Prediction, Watch]:
    """What one configuration will make of a scan, and what then is known of it; a cascade has the mask before it made first."""
    models, setting = trained.ensembles[name]
    plan, previous = models[0].plan, None
    if plan.previous:
        before, _ = predict_scan(plan.previous, channels, spacing_mm, trained, case, maps=())
        previous = restore_labels([before], plan)
    prepared = prepare(channels, spacing_mm, plan, previous=previous)
    image, placement = prepared.image, prepared.placement
    mirrors = find_mirrors(plan, trained.settings["train_mirror"])
    width = max(model.width for model in models)
    members = [[model] for model in models] if maps else [models]
    memory_gib = trained.settings["memory_gib"] / len(members)  # all at once, slab by slab
    window = window_of(setting, plan, width, image.shape[1:], mirrors, memory_gib)
    of_members = [predict_case(member, image, placement, trained.device, window, case=case) for member in members]
    watch = Watch(plan, has_maps=bool(maps))
    slabs = watch.pass_on(zip(*(prediction.slabs for prediction in of_members), strict=True))
    return Prediction(slabs, image.shape[1:], placement), watch


def found_labels(
    labels: Segmentation, spacing_mm: Spacing, watches: Sequence[Watch], cohort: Cohort, plan: Plan
) -> list[FoundLabel]:
    """Of a mask (I, J, K); the DSC to expect is the mean over the configurations that found the label."""
    volumes = volumes_ml(labels, spacing_mm, cohort)
    found = []
    for index, target in enumerate(cohort.targets):
        output = index if plan.regions else plan.labels.index(target.values[0])
        expected = [value for watch in watches if (value := watch.expected.per_output[output]) is not None]
        is_there = bool(expected) and volumes[target.name] > 0
        expected_dsc = round(sum(expected) / len(expected), 4) if is_there else None
        found.append(FoundLabel(str(target.label), target.name, round(volumes[target.name], 6), expected_dsc))
    return found


if __name__ == "__main__":
    errors.run(main)
