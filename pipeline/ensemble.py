"""Predictions of several configurations to the masks of the combination that does best on the other folds, cleaned.

Combination and cleaning for a fold are chosen by the DSC on all other folds, so no case has a say in how it is segmented
itself; what the choice would have claimed with all cases stands beside it in `choice.json`. Imports no torch.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np

from pipeline import errors, records
from pipeline.choice import (
    FEWEST_BETTER,
    SMALLEST_GAIN,
    CaseScores,
    Choice,
    Combination,
    Offer,
    accepted_as_json,
    decide,
    mean_scores,
    score_of,
)
from pipeline.errors import PlanError
from pipeline.images import (
    Segmentation,
    Volume,
    grid_of,
    open_image,
    read_labels_ras,
    read_ras,
    write_mask,
    write_volume,
)
from pipeline.limits import free_bytes
from pipeline.manifest import on_unchanged
from pipeline.paths import Results
from pipeline.plan import Plan, read_plan
from pipeline.postprocess import NOTHING, OPTIONS, component_sizes, postprocess, score_options
from pipeline.preprocess import load_image, load_placement
from pipeline.probabilities import open_prediction
from pipeline.processes import map_cases
from pipeline.records import Case, Cohort
from pipeline.regression import TARGET, mean_absolute_error
from pipeline.restore import restore_labels

# Memory of combining, cleaning and scoring one scan; tests/test_ensemble.py measures it.
# Of each prepared voxel, output and configuration: a prediction along other axes is turned as a whole.
BYTES_PER_PROBABILITY = 2
BYTES_PER_VOXEL = 40  # of the scan: label maps, their components and their scores


def main(results: str, configurations: str, folds: str, settings: str, threads: int = 1) -> None:
    """`configurations` and `folds` are lists with commas, `settings` is JSON: postprocess."""
    files = Results(results)
    names = [name for name in configurations.split(",") if not records.left_out(files.plan(name))]
    if not names:
        raise PlanError(f"{configurations}: left out by the plan, so nothing is trained. Add 3d_fullres or 2d.")
    numbers = [int(fold) for fold in folds.split(",")]
    cases = [case for case in records.read_cases(files.checked_cases) if case.fold in numbers]
    plan, cohort = read_plan(files.plan(names[0])), records.read_cohort(files.cohort)
    for name in names:
        for fold in numbers:
            records.verify_file_list(files.predicted(name, fold))
            if len(names) > 1 and not cohort.is_regression:
                records.verify_file_list(files.list_of_probabilities(name, fold))
    is_cleaned = json.loads(settings)["postprocess"] and not cohort.is_regression
    labels = [target.label for target in cohort.targets] or [TARGET]  # of a regression
    offer = Offer(all_combinations(names), OPTIONS if is_cleaned else (NOTHING,), labels)
    largest = max(bytes_of(files, case.case, names, plan.num_outputs) for case in cases)
    workers = num_processes(threads, largest, free_bytes())
    scores: list[CaseScores] = []
    if len(names) > 1 or is_cleaned:
        score = partial(score_case, files=files, offer=offer, plan=plan, cohort=cohort)
        score = partial(on_unchanged, score, files.manifest, "label")
        scores = map_cases(score, cases, processes=workers, desc="ensemble scores")
    chosen, for_new_scans = decide(scores, numbers, offer)
    write = partial(write_combined, files=files, plan=plan, cohort=cohort)
    choices = [chosen[case.fold] for case in cases]
    masks = map_cases(write, cases, choices, processes=workers, desc="ensemble masks")
    reason = explain(len(numbers), len(names), is_regression=cohort.is_regression)
    records.write_json(
        files.choice,
        {
            "per_fold": {
                str(fold): {"chosen": list(one.combination), "reason": reason} for fold, one in chosen.items()
            },
            "for_new_scans": list(for_new_scans.combination),
            "scores": {"+".join(part): abs(value) for part, value in mean_scores(scores, offer).items()},
            "postprocess": {
                "reason": explain_cleaning(len(numbers), is_cleaned=is_cleaned, is_regression=cohort.is_regression),
                "per_fold": {str(fold): accepted_as_json(one, labels) for fold, one in chosen.items()},
                "for_new_scans": accepted_as_json(for_new_scans, labels),
            },
            "estimate": estimate(scores, chosen, for_new_scans, offer),
            "files": {str(mask): records.sha256(mask) for mask in masks},
        },
    )


def all_combinations(names: Sequence[str]) -> list[Combination]:
    """Every nonempty subset, larger ones first: of equal scores the larger ensemble is taken."""
    return [part for size in range(len(names), 0, -1) for part in combinations(names, size)]


def explain(num_folds: int, num_configurations: int, *, is_regression: bool = False) -> str:
    if num_configurations == 1:
        return "there is one configuration"
    if num_folds == 1:
        return (
            "only one fold was run, so nothing could be compared without its own cases: all configurations are averaged"
        )
    measure = "lowest mean absolute error" if is_regression else "best mean DSC"
    return f"{measure} on the cases of the other folds"


def explain_cleaning(num_folds: int, *, is_cleaned: bool, is_regression: bool = False) -> str:
    if is_regression:
        return "a regression has no labels to clean"
    if not is_cleaned:
        return "switched off, `ensemble.postprocess` is false"
    rule = (
        f"done to a label where its mean DSC rises by {SMALLEST_GAIN} or more on the cases that choose, "
        f"with at least {FEWEST_BETTER} of them better, and {FEWEST_BETTER} for each that gets worse"
    )
    if num_folds == 1:
        return (
            f"{rule}; only one fold was run, so there were no others to choose for its cases, which stay as predicted"
        )
    return f"{rule}; for a fold the cases of the others choose"


def estimate(
    scores: Sequence[CaseScores], chosen: Mapping[int, Choice], for_new_scans: Choice, offer: Offer
) -> dict[str, float]:
    """What was reached without the cases in question, and what the choice with all of them would have claimed."""
    if not scores:
        return {}
    honest, naive = (score_of(scores, one, offer) for one in (chosen, dict.fromkeys(chosen, for_new_scans)))
    return {"chosen": abs(honest), "naive": abs(naive), "optimism": naive - honest}


def combine(files: Results, case: Case, combination: Combination, plan: Plan) -> Segmentation:
    """(I, J, K) in RAS order: the label map of the mean probabilities; one configuration alone keeps its own mask."""
    if len(combination) == 1:
        return read_labels_ras(files.mask(combination[0], case.case))[0]
    stored = [files.probabilities_of(name, case.fold, case.case) for name in combination]
    placements = [load_placement(files.arrays(name, case.case)) for name in combination]
    return restore_labels([*map(open_prediction, stored, placements)], plan)


def mean_values(files: Results, case: str, combination: Combination) -> Volume:
    """(I, J, K) in RAS order: the mean of what the configurations of a regression predicted."""
    return _mean(read_ras(files.mask(name, case))[0] for name in combination)


def _mean(volumes: Iterator[Volume]) -> Volume:
    """Of one or more, two of them in memory at a time; the first becomes the result."""
    total, num_volumes = next(volumes), 1
    for volume in volumes:
        total += volume
        del volume  # before the next one is read
        num_volumes += 1
    total /= num_volumes
    return total


def bytes_of(files: Results, case: str, names: Sequence[str], num_outputs: int) -> int:
    """What combining, cleaning and scoring a scan takes."""
    folders = [files.arrays(name, case) for name in names]
    num_prepared = sum(math.prod(load_image(folder).shape[1:]) for folder in folders)
    num_voxels = math.prod(load_placement(folders[0]).shape_ras)
    return num_prepared * num_outputs * BYTES_PER_PROBABILITY + num_voxels * BYTES_PER_VOXEL


def num_processes(threads: int, largest_bytes: int, free_bytes: int) -> int:
    """As many as have room for the largest scan at the same time, one at least and `threads` at most."""
    return max(1, min(threads, free_bytes // largest_bytes))


def score_case(case: Case, *, files: Results, offer: Offer, plan: Plan, cohort: Cohort) -> CaseScores:
    """The DSC of every target under each combination and option; in a regression the mean absolute error, below 0."""
    assert case.label is not None, case
    if cohort.is_regression:
        values = read_ras(case.label)[0]
        found = [-mean_absolute_error(values, mean_values(files, case.case, part)) for part in offer.combinations]
        return CaseScores(case.fold, np.array(found, np.float32).reshape(-1, 1, 1), (np.empty(0),))
    reference, grid = read_labels_ras(case.label)
    sizes = component_sizes(reference, cohort)
    score = partial(score_options, spacing_mm=grid.spacing_mm, options=offer.options, cohort=cohort)
    tables = [
        score(reference, combine(files, case, part, plan), [int(own.sum()) for own in sizes])
        for part in offer.combinations
    ]
    return CaseScores(case.fold, np.stack(tables), tuple(own * math.prod(grid.spacing_mm) for own in sizes))


def write_combined(case: Case, choice: Choice, *, files: Results, plan: Plan, cohort: Cohort) -> Path:
    path, scan = files.mask("ensemble", case.case), case.channels[0]
    if cohort.is_regression:
        write_volume(path, mean_values(files, case.case, choice.combination), scan)
        return path
    mask = combine(files, case, choice.combination, plan)
    operations = choice.by_label([target.label for target in cohort.targets])
    write_mask(path, postprocess(mask, grid_of(open_image(scan)).spacing_mm, operations, cohort), scan)
    return path


if __name__ == "__main__":
    errors.run(main)
