"""Probabilities of several configurations to the masks of the combination that does best on the other folds.

The combination for a fold is chosen by the DSC on all other folds, so no case has a say in how it is segmented itself.
Imports no torch.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import psutil
from tqdm.contrib.concurrent import process_map

from pipeline import errors, records
from pipeline.errors import PlanError
from pipeline.images import Segmentation, Volume, read_labels_ras, read_ras, write_mask, write_volume
from pipeline.metrics import dsc
from pipeline.paths import Results
from pipeline.plan import Plan, read_plan
from pipeline.preprocess import load_placement
from pipeline.probabilities import open_prediction
from pipeline.records import Case, Cohort
from pipeline.regression import mean_absolute_error
from pipeline.restore import restore_labels
from pipeline.targets import per_target

# Memory of combining and scoring one scan; tests/test_ensemble.py measures it.
BYTES_PER_OUTPUT = 10  # of each voxel: the sum, and the next volume as stored and as read
BYTES_PER_VOXEL = 40  # label maps and their scores

Combination = tuple[str, ...]  # names of configurations whose probabilities are averaged


def main(results: str, configurations: str, folds: str, threads: int = 1) -> None:
    """`configurations` and `folds` are lists with commas."""
    files = Results(results)
    names = [name for name in configurations.split(",") if not records.left_out(files.plan(name))]
    if not names:
        raise PlanError(f"{configurations}: left out by the plan, so nothing is trained. Add 3d_fullres or 2d.")
    numbers = [int(fold) for fold in folds.split(",")]
    cases = [case for case in records.read_cases(files.cases) if case.fold in numbers]
    for name in names:
        for fold in numbers:
            records.verify_file_list(files.predicted(name, fold))
    plan, cohort = read_plan(files.plan(names[0])), records.read_cohort(files.cohort)
    offered = all_combinations(names)
    score = partial(score_case, files=files, offered=offered, plan=plan, cohort=cohort)
    shapes = [case["shape"] for case in records.read_json(files.fingerprint)["cases"]]
    workers = num_processes(threads, shapes, plan.num_outputs, psutil.virtual_memory().available)
    scores = process_map(score, cases, max_workers=workers, desc="ensemble scores", mininterval=5)
    chosen = choose(scores, [case.fold for case in cases], offered, numbers)
    write = partial(write_combined, files=files, plan=plan)
    combined = [chosen[case.fold] for case in cases]
    masks = process_map(write, cases, combined, max_workers=workers, desc="ensemble masks", mininterval=5)
    everything = mean_scores(scores, offered)
    records.write_json(
        files.choice,
        {
            "per_fold": {
                str(fold): {
                    "chosen": list(chosen[fold]),
                    "reason": explain(len(numbers), len(names), is_regression=cohort.is_regression),
                }
                for fold in numbers
            },
            "for_new_scans": list(best(offered, everything)),
            "scores": {"+".join(part): abs(value) for part, value in everything.items()} if len(names) > 1 else {},
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


def combine(files: Results, case: str, combination: Combination, plan: Plan) -> Segmentation:
    """(I, J, K) in RAS order: the label map of the mean probabilities; one configuration alone keeps its own mask."""
    if len(combination) == 1:
        return read_labels_ras(files.mask(combination[0], case))[0]
    return restore_labels(
        [
            open_prediction(files.probabilities(name, case), load_placement(files.arrays(name, case)))
            for name in combination
        ],
        plan,
    )


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


def num_processes(threads: int, shapes: Iterable[Sequence[int]], num_outputs: int, free_bytes: int) -> int:
    """As many as have room for the largest scan at the same time, one at least and `threads` at most."""
    largest = max(math.prod(shape) for shape in shapes) * (num_outputs * BYTES_PER_OUTPUT + BYTES_PER_VOXEL)
    return max(1, min(threads, free_bytes // largest))


def score_case(
    case: Case, *, files: Results, offered: Sequence[Combination], plan: Plan, cohort: Cohort
) -> dict[Combination, float | None]:
    """How good each combination is: mean DSC over the foreground labels or regions, None where neither mask has any;
    in a regression the mean absolute error, below 0 so that more is better."""
    if len(offered) == 1:
        return dict.fromkeys(offered, None)
    assert case.label is not None, case
    if cohort.is_regression:
        values = read_ras(case.label)[0]
        return {part: -mean_absolute_error(values, mean_values(files, case.case, part)) for part in offered}
    reference = read_labels_ras(case.label)[0]
    scores: dict[Combination, float | None] = {}
    for combination in offered:
        prediction = combine(files, case.case, combination, plan)
        found = [score for score in per_target(dsc, reference, prediction, cohort) if score is not None]
        scores[combination] = float(np.mean(found)) if found else None
    return scores


def mean_scores(
    scores: Sequence[Mapping[Combination, float | None]], offered: Sequence[Combination]
) -> dict[Combination, float]:
    """Mean over the cases that have a score; 0 if none has (with one configuration nothing is scored)."""
    means = {}
    for combination in offered:
        found = [value for score in scores if (value := score[combination]) is not None]
        means[combination] = float(np.mean(found)) if found else 0.0
    return means


def best(offered: Sequence[Combination], means: Mapping[Combination, float]) -> Combination:
    """The one with the highest mean; of equal ones the first offered."""
    return offered[int(np.argmax([means[combination] for combination in offered]))]


def choose(
    scores: Sequence[Mapping[Combination, float | None]],
    fold_of_case: Sequence[int],
    offered: Sequence[Combination],
    folds: Sequence[int],
) -> dict[int, Combination]:
    """For each fold the combination with the best mean score on the cases of the other folds; the first if there are none."""
    chosen = {}
    for fold in folds:
        others = [score for score, own in zip(scores, fold_of_case, strict=True) if own != fold]
        means = mean_scores(others, offered)
        chosen[fold] = best(offered, means)
    return chosen


def write_combined(case: Case, combination: Combination, *, files: Results, plan: Plan) -> Path:
    mask = files.mask("ensemble", case.case)
    if plan.task == "regression":
        write_volume(mask, mean_values(files, case.case, combination), case.channels[0])
    else:
        write_mask(mask, combine(files, case.case, combination, plan), case.channels[0])
    return mask


if __name__ == "__main__":
    errors.run(main)
