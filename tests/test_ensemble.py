import tracemalloc
from dataclasses import asdict, replace

import nibabel as nib
import numpy as np
import pytest

from pipeline import records
from pipeline.ensemble import (
    BYTES_PER_OUTPUT,
    BYTES_PER_VOXEL,
    all_combinations,
    choose,
    combine,
    explain,
    mean_scores,
    mean_values,
    num_processes,
    score_case,
)
from pipeline.paths import Results
from pipeline.probabilities import open_prediction, save_prediction
from pipeline.records import Case, Cohort
from pipeline.restore import Prediction
from tests.dense import as_it_is, gathered
from tests.test_preprocess import make_plan

OFFERED = all_combinations(["2d", "3d_fullres"])


def scores(flat, full, both):
    return {("2d",): flat, ("3d_fullres",): full, ("2d", "3d_fullres"): both}


def test_every_subset_is_offered_the_largest_first():
    assert OFFERED == [("2d", "3d_fullres"), ("2d",), ("3d_fullres",)]


def test_a_fold_is_segmented_by_what_was_best_on_the_others():
    found = [scores(0.9, 0.1, 0.5), scores(0.1, 0.9, 0.5)]
    chosen = choose(found, [0, 1], OFFERED, [0, 1])
    assert chosen == {0: ("3d_fullres",), 1: ("2d",)}


def test_changing_the_scores_of_a_fold_never_changes_its_own_choice():
    before = [scores(0.9, 0.1, 0.5), scores(0.1, 0.9, 0.5)]
    after = [scores(0.0, 0.0, 1.0), before[1]]
    assert choose(before, [0, 1], OFFERED, [0, 1])[0] == choose(after, [0, 1], OFFERED, [0, 1])[0]


def test_one_fold_alone_is_averaged_over_everything_and_says_why():
    assert choose([scores(0.9, 0.1, 0.5)], [0], OFFERED, [0]) == {0: ("2d", "3d_fullres")}
    assert "only one fold was run" in explain(1, 2)
    assert explain(2, 2, is_regression=True) == "lowest mean absolute error on the cases of the other folds"


def test_cases_without_any_label_leave_the_mean_and_nothing_gives_zero():
    assert mean_scores([scores(None, 0.4, 0.5), scores(0.8, 0.6, 0.5)], OFFERED)[("2d",)] == 0.8
    assert mean_scores([], OFFERED)[("2d",)] == 0


def test_no_more_scans_are_combined_at_once_than_memory_holds():
    shapes = [(9, 11, 13), (100, 100, 100)]
    gib = 2**30
    assert num_processes(8, shapes, 3, free_bytes=64 * gib) == 8
    assert num_processes(8, shapes, 61, free_bytes=2 * gib) == 3
    assert num_processes(8, shapes, 61, free_bytes=0) == 1


def save_maps(files, configuration, maps):
    """As `predict` stores them, for case c."""
    shape = maps.shape[1:]
    records.write_json(files.arrays(configuration, "c") / "placement.json", asdict(as_it_is(shape)))
    gathered(save_prediction(files.probabilities(configuration, "c"), Prediction([maps], shape, as_it_is(shape))).slabs)


@pytest.mark.parametrize("regions", [(), ((2, 5), (5,))], ids=["labels", "regions"])
def test_combining_and_scoring_take_no_more_memory_than_is_reckoned_with(tmp_path, monkeypatch, regions):
    monkeypatch.chdir(tmp_path)
    files, names, shape = Results("a"), ("2d", "3d_fullres", "3d_lowres"), (51, 44, 63)
    labels = tuple(range(40))
    plan = make_plan(labels=labels, regions=regions)
    cohort = Cohort("a", "MSD", {value: str(value) for value in labels}, {0: "CT"})
    cohort = replace(cohort, regions={str(index): list(region) for index, region in enumerate(regions)})
    random = np.random.default_rng(0)
    for name in names:
        save_maps(files, name, random.random((plan.num_outputs, *shape), np.float32))
    label = tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image(random.integers(0, 40, shape).astype(np.uint8), np.eye(4)), label)
    case = Case("c", "c", 0, label, ())
    score_case(case, files=files, offered=[names, names[1:]], plan=plan, cohort=cohort)  # imports what it needs
    tracemalloc.start()
    score_case(case, files=files, offered=[names, names[1:]], plan=plan, cohort=cohort)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes <= np.prod(shape) * (plan.num_outputs * BYTES_PER_OUTPUT + BYTES_PER_VOXEL) + 2**20


def test_the_sum_of_configurations_is_their_mean(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files, random = Results("a"), np.random.default_rng(1)
    plan = make_plan()
    found = []
    for name in ("2d", "3d_fullres", "3d_lowres"):
        save_maps(files, name, random.random((3, 9, 11, 13), np.float32))
        stored = open_prediction(files.probabilities(name, "c"), as_it_is((9, 11, 13)))
        found.append(gathered(stored.slabs) / np.float32(255))
    combined = combine(files, "c", ("2d", "3d_fullres", "3d_lowres"), plan)
    assert np.array_equal(combined, np.array(plan.labels)[np.mean(found, axis=0).argmax(axis=0)])


def test_values_of_a_regression_are_averaged_and_one_alone_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files, random = Results("a"), np.random.default_rng(2)
    found = []
    for name in ("2d", "3d_fullres"):
        found.append(random.random((9, 11, 13), np.float32))
        files.mask(name, "c").parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(found[-1], np.eye(4)), files.mask(name, "c"))
    assert np.array_equal(mean_values(files, "c", ("2d", "3d_fullres")), np.mean(found, axis=0))
    assert np.array_equal(mean_values(files, "c", ("2d",)), found[0])
