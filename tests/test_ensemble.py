import json
import tracemalloc
from dataclasses import asdict, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline import ensemble, records
from pipeline.choice import Offer
from pipeline.ensemble import (
    all_combinations,
    bytes_of,
    combine,
    explain,
    explain_cleaning,
    mean_values,
    num_processes,
    score_case,
)
from pipeline.images import read_labels_ras
from pipeline.paths import Results
from pipeline.plan import Width
from pipeline.postprocess import OPTIONS
from pipeline.probabilities import save_prediction
from pipeline.records import Case, Cohort
from pipeline.restore import Prediction
from tests.checked import write_checked
from tests.dense import as_it_is, gathered
from tests.test_preprocess import make_plan

SHAPE, AFFINE = (9, 11, 13), np.diag([-0.7, 1.0, 2.5, 1.0])  # not RAS
COHORT = Cohort("a", "MSD", {0: "background", 2: "liver", 5: "spleen"}, {0: "CT"})


def test_every_subset_is_offered_the_largest_first():
    assert all_combinations(["2d", "3d_fullres"]) == [("2d", "3d_fullres"), ("2d",), ("3d_fullres",)]


def test_one_fold_or_one_configuration_is_named_as_the_reason():
    assert "only one fold was run" in explain(1, 2)
    assert explain(2, 1) == "there is one configuration"
    assert explain(2, 2, is_regression=True) == "lowest mean absolute error on the cases of the other folds"
    assert "its cases, which stay as predicted" in explain_cleaning(1, is_cleaned=True)
    assert "switched off" in explain_cleaning(2, is_cleaned=False)
    assert "no labels" in explain_cleaning(2, is_cleaned=False, is_regression=True)


def save_maps(files, configuration, maps, axes="xyz"):
    """As `predict` stores them along these axes, for case c of shape (L, I, J, K)."""
    folder, placement = files.arrays(configuration, "c"), as_it_is(maps.shape[1:])
    order = ["xyz".index(axis) for axis in axes]
    turned = maps.transpose(0, *(axis + 1 for axis in order))
    placement = replace(placement, axes=axes, cropped_shape=turned.shape[1:])
    records.write_json(folder / "placement.json", asdict(placement))
    np.save(folder / "image.npy", np.zeros((1, *turned.shape[1:]), np.float32))
    path = files.probabilities_of(configuration, 0, "c")
    gathered(save_prediction(path, Prediction([turned], turned.shape[1:], placement)).slabs)


def test_no_more_scans_are_combined_at_once_than_memory_holds():
    gib = 2**30
    assert num_processes(8, gib // 2, free_bytes=64 * gib) == 8
    assert num_processes(8, gib // 2, free_bytes=2 * gib) == 4
    assert num_processes(8, gib // 2, free_bytes=0) == 1


@pytest.mark.parametrize("regions", [(), ((2, 5), (5,))], ids=["labels", "regions"])
@pytest.mark.parametrize("num_labels", [40, 3])
def test_combining_and_scoring_take_no_more_memory_than_is_reckoned_with(tmp_path, monkeypatch, regions, num_labels):
    monkeypatch.chdir(tmp_path)
    files, names, shape = Results("a"), ("2d", "3d_fullres", "3d_lowres"), (51, 44, 63)
    labels = tuple(range(num_labels))
    plan = make_plan(labels=labels, regions=regions)
    cohort = Cohort("a", "MSD", {value: str(value) for value in labels}, {0: "CT"})
    cohort = replace(cohort, regions={str(index): list(region) for index, region in enumerate(regions)})
    random = np.random.default_rng(0)
    for name, axes in zip(names, ("xyz", "zyx", "yxz"), strict=True):
        save_maps(files, name, random.random((plan.num_outputs, *shape), np.float32), axes)
    label = tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image(random.integers(0, num_labels, shape).astype(np.uint8), np.eye(4)), label)
    case, offer = (
        Case("c", "c", 0, label, ()),
        Offer([names, names[1:]], OPTIONS, [one.label for one in cohort.targets]),
    )
    score_case(case, files=files, offer=offer, plan=plan, cohort=cohort)  # imports what it needs
    tracemalloc.start()
    score_case(case, files=files, offer=offer, plan=plan, cohort=cohort)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    reckoned = bytes_of(files, "c", names, plan.num_outputs)
    print(f"{peak_bytes=} {reckoned=}")
    assert peak_bytes <= reckoned + 2**20


def test_the_sum_of_configurations_is_their_mean(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files, random, plan = Results("a"), np.random.default_rng(1), make_plan()
    found = []
    for name, axes in (("2d", "xyz"), ("3d_fullres", "zyx"), ("3d_lowres", "zyx")):
        found.append(random.random((3, *SHAPE), np.float32))
        save_maps(files, name, found[-1], axes)
    combined = combine(files, Case("c", "c", 0, None, ()), ("2d", "3d_fullres", "3d_lowres"), plan)
    rounded = np.sum(np.rint(np.array(found) * 255), axis=0)
    is_tie = (rounded == rounded.max(axis=0)).sum(axis=0) > 1
    assert np.array_equal(combined[~is_tie], np.array(plan.labels)[rounded.argmax(axis=0)][~is_tie])
    assert is_tie.mean() < 0.05


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


def save(path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels.astype(np.uint8), AFFINE), path)
    return path


@pytest.fixture
def run(tmp_path, monkeypatch):
    """One configuration, a case in each of four folds; every prediction has a liver and an island far from it."""
    monkeypatch.chdir(tmp_path)
    files, cases, truth = Results("a"), [], np.zeros(SHAPE)
    truth[1:6, 2:8, 2:9] = 2
    for fold in range(4):
        name = f"case_{fold}"
        predicted = truth.copy()
        predicted[8, 10, 11:] = 2
        scan = save(tmp_path / f"scans/{name}.nii.gz", truth)
        cases.append(Case(name, name, fold, save(tmp_path / f"labels/{name}.nii.gz", truth), (scan,)))
        records.write_file_list(files.predicted("3d", fold), records.digests([save(files.mask("3d", name), predicted)]))
        records.write_json(files.arrays("3d", name) / "placement.json", asdict(as_it_is(SHAPE)))
        np.save(files.arrays("3d", name) / "image.npy", truth[None])
    write_checked(files, cases)
    records.write_cohort(files.cohort, COHORT)
    records.write_json(files.plan("3d"), asdict(make_plan(configuration="3d", widths=(Width(4, 0.1),))))
    return files


def choice_of(files, folds="0,1,2,3", postprocess=True):
    ensemble.main(files.name, "3d", folds, json.dumps({"postprocess": postprocess}))
    return records.read_json(files.choice)


def num_liver(files, name):
    return int((read_labels_ras(files.mask("ensemble", name))[0] == 2).sum())


LIVER, ISLAND = 5 * 6 * 7, 2


def test_masks_are_cleaned_as_the_other_folds_say_and_the_predictions_stay_as_they_are(run):
    choice = choice_of(run)
    helped = {"fill_holes": False, "min_mm3": 300.0, "keep_largest": False}
    gain = 1 - 2 * LIVER / (2 * LIVER + ISLAND)
    for fold in range(4):
        (own,) = choice["postprocess"]["per_fold"][str(fold)].values()
        assert own == {**helped, "gain": pytest.approx(gain, abs=1e-6), "better": 3, "worse": 0}
        assert num_liver(run, f"case_{fold}") == LIVER
        assert (read_labels_ras(run.mask("3d", f"case_{fold}"))[0] == 2).sum() == LIVER + ISLAND
    assert choice["postprocess"]["for_new_scans"]["2"]["better"] == 4
    assert choice["for_new_scans"] == ["3d"]
    assert choice["estimate"] == {"chosen": 1, "naive": 1, "optimism": 0}
    assert choice["scores"] == {"3d": pytest.approx(1 - gain)}
    mask, scan = (nib.load(path) for path in (run.mask("ensemble", "case_0"), "scans/case_0.nii.gz"))
    assert (mask.shape, mask.affine.tobytes()) == (scan.shape, scan.affine.tobytes())


def test_the_reference_of_a_case_alone_in_its_fold_changes_neither_its_choice_nor_its_mask(run):
    """The reference takes the island for a liver in its own right: with a say, this case would have kept it."""
    before, mask = choice_of(run), run.mask("ensemble", "case_0").read_bytes()
    reference = np.zeros(SHAPE)
    reference[8, 10, 11:] = 2
    save(Path("labels/case_0.nii.gz"), reference)
    write_checked(run, records.read_cases(run.checked_cases))
    after = choice_of(run)
    assert after["postprocess"]["per_fold"]["0"] == before["postprocess"]["per_fold"]["0"]
    assert run.mask("ensemble", "case_0").read_bytes() == mask
    assert after["postprocess"]["per_fold"]["1"] != before["postprocess"]["per_fold"]["1"]
    assert after["postprocess"]["for_new_scans"] != before["postprocess"]["for_new_scans"]
    assert (
        after["estimate"]["chosen"]
        < after["estimate"]["naive"]
        == pytest.approx(after["estimate"]["chosen"] + after["estimate"]["optimism"])
    )


def test_a_single_fold_stays_as_predicted_and_new_scans_need_more_than_its_one_case(run):
    choice = choice_of(run, folds="0")
    assert choice["postprocess"]["per_fold"] == {"0": {}}
    assert choice["postprocess"]["for_new_scans"] == {}
    assert num_liver(run, "case_0") == LIVER + ISLAND


def test_without_postprocessing_masks_stay_as_predicted_and_nothing_is_scored(run):
    choice = choice_of(run, postprocess=False)
    assert choice["postprocess"]["per_fold"] == {str(fold): {} for fold in range(4)}
    assert (choice["scores"], choice["estimate"]) == ({}, {})
    assert num_liver(run, "case_0") == LIVER + ISLAND
