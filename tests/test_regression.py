"""A regression from scans with an image of values to predicted values: errors, and a network that learns them."""

import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest

from pipeline import discover, evaluate, fingerprint, records
from pipeline import plan as planning
from pipeline.check.__main__ import main as check
from pipeline.config import complete, settings_of
from pipeline.errors import CohortError, ImageError
from pipeline.images import read_ras, write_volume
from pipeline.inference import main as inference
from pipeline.paths import Results
from pipeline.phantoms import LABELS, VALUES, make_case, smooth_values, write_cohort
from pipeline.predict import main as predict
from pipeline.preprocess import main as preprocess
from pipeline.preprocess import prepare, save_prepared
from pipeline.records import Case
from pipeline.regression import mean_absolute_error, measure_case, root_mean_square_error, summarise
from pipeline.restore import Prediction, restore_values
from pipeline.train import main as train
from tests.test_preprocess import SHAPE, SPACING, labelled_scan, make_plan

PLAN = make_plan(task="regression", labels=(), target_scale=50.0, spacing_mm=(2.5, 1.0, 0.7))


def write_values(path, values, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values.astype(np.float32), np.diag((*SPACING, 1.0)) if affine is None else affine), path)
    return path


def test_errors_are_those_of_a_pencil():
    reference, prediction = np.zeros((1, 2, 2), np.float32), np.array([[[0, 1], [-3, 0]]], np.float32)
    assert mean_absolute_error(reference, prediction) == 1
    assert root_mean_square_error(reference, prediction) == pytest.approx(np.sqrt(2.5))


def test_every_case_is_measured_and_the_mean_has_an_interval_over_subjects(tmp_path):
    scores = []
    for number, subject in enumerate(["anna", "anna", "bert"]):
        reference = write_values(tmp_path / f"reference_{number}.nii.gz", np.ones(SHAPE))
        prediction = write_values(tmp_path / f"prediction_{number}.nii.gz", np.full(SHAPE, 2.0 + number))
        scores += measure_case(Case(f"c{number}", subject, 0, reference, ()), {"2d": prediction})
    assert [score.mae for score in scores] == [1, 2, 3]
    assert (scores[2].reference_mean, scores[2].prediction_mean) == (1, 4)
    (row,) = summarise(scores)
    assert (row["n"], row["mae"], row["mae_low"], row["mae_high"]) == (3, 2, 1.5, 3)
    (one,) = summarise(scores[:2])
    assert "mae_low" not in one, "one subject has no spread"
    evaluate.write_tables(tmp_path / "metrics.tsv", tmp_path / "summary.tsv", list(scores))
    assert list(records.read_table(tmp_path / "metrics.tsv")[0])[:6] == [
        *("configuration", "fold", "case", "label", "name", "status")
    ]


def test_a_prediction_on_another_grid_is_refused(tmp_path):
    case = Case("a", "a", 0, write_values(tmp_path / "reference.nii.gz", np.ones(SHAPE)), ())
    with pytest.raises(ImageError, match=r"other.nii.gz has shape \(17, 22, 13\), reference .* \(18, 22, 13\)"):
        measure_case(case, {"2d": write_values(tmp_path / "other.nii.gz", np.ones(SHAPE)[1:])})


def test_restoring_prepared_values_gives_them_back_in_their_unit(tmp_path):
    image, labels = labelled_scan()
    values = labels * 12.5
    prepared = prepare(image, SPACING, PLAN, values.astype(np.float32))
    assert prepared.classes.dtype == np.float32
    maps = prepared.classes[None] * np.float32(50)
    restored = restore_values([Prediction([maps], maps.shape[1:], prepared.placement)])
    assert np.allclose(restored, values, atol=1e-3)
    save_prepared(prepared, tmp_path, PLAN)
    locations = np.load(tmp_path / "locations.npy")
    assert (prepared.classes[tuple(locations[:, 1:].T)] != 0).all()


def test_values_are_resampled_linearly():
    image, _ = labelled_scan()
    ramp = np.broadcast_to(np.arange(SHAPE[0], dtype=np.float32)[:, None, None], SHAPE)
    half = dataclasses.replace(PLAN, target_scale=1.0, spacing_mm=(2.5, 1.0, 1.4))
    prepared = prepare(image, SPACING, half, ramp)
    assert np.allclose(prepared.classes[0, 0, 1:-1], np.arange(2.5, 15, 2), atol=1e-4)


def test_a_volume_is_written_as_float32_on_the_grid_of_its_scan(tmp_path):
    affine = np.diag([-0.7, 1.0, 2.5, 1])
    scan = write_values(tmp_path / "scan.nii.gz", np.zeros(SHAPE), affine)
    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    write_volume(tmp_path / "values.nii.gz", values, scan)
    written = nib.load(tmp_path / "values.nii.gz")
    assert written.get_data_dtype() == np.float32
    assert np.array_equal(written.affine, nib.load(scan).affine)
    assert np.array_equal(read_ras(tmp_path / "values.nii.gz")[0], values)


def test_the_phantoms_values_are_those_of_the_organs_and_0_far_from_them():
    _, segmentation, affine = make_case(0, size=0.7)
    values = smooth_values(segmentation, affine)
    assert values.dtype == np.float32
    assert values.max() <= max(VALUES.values())
    assert values[segmentation == LABELS["liver"]].mean() > 1.3 * values[segmentation == LABELS["spleen"]].mean()
    assert values[0].max() < 5


def test_a_cohort_of_values_needs_no_labels_and_any_finite_value_passes_the_check(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_cohort(tmp_path / "scans", num_cases=3, size=0.4, has_values=True)
    settings = {
        "folds": 3,
        "seed": 1,
        "layout": "auto",
        "labels": {},
        "channels": {},
        "ignore_label": None,
        "regions": [],
    }
    discover.main("r", "scans", json.dumps({**settings, "task": "regression"}))
    cohort = records.read_cohort(Results("r").cohort)
    assert (cohort.labels, cohort.task) == ({}, "regression")
    check("r", json.dumps({"folds": 3, "seed": 1}))
    with pytest.raises(CohortError, match="`labels` is None"):
        discover.main("r", "scans", json.dumps({**settings, "task": "segmentation"}))
    discover.main("r", "scans", json.dumps({**settings, "task": "regression"}))
    path = records.read_cases(Results("r").cases)[0].label
    broken = nib.load(path).get_fdata()
    broken[0, 0, 0] = np.nan
    write_values(path, broken, nib.load(path).affine)
    with pytest.raises(CohortError, match="1 problem"):
        check("r", json.dumps({"folds": 3, "seed": 1}))
    assert records.read_table(Results("r").problems)[0]["rule"] == "nonfinite"


def test_a_network_learns_values_through_the_stages(tmp_path, monkeypatch):
    """Less than half of the error of predicting 0, from the scans of four phantoms; the fifth was never seen."""
    monkeypatch.chdir(tmp_path)
    files = Results("r")
    write_cohort(tmp_path / "scans", num_cases=5, size=0.5, has_values=True)
    config = complete(
        {
            **{"name": "r", "cohort": "scans", "task": "regression", "folds": 5},
            "configurations": {"3d_fullres": {"features": 8, "patch_size": [24, 24, 24], "batch_size": 2}},
            "train": {"iterations": 150, "learning_rate": 0.01, "augment": False, "compile": False},
        }
    )
    keys = ("layout", "folds", "seed", "labels", "channels", "ignore_label", "task")
    discover.main("r", "scans", json.dumps({**{key: config[key] for key in keys}, "regions": []}))
    check("r", json.dumps({key: config[key] for key in ("folds", "seed")}))
    fingerprint.main("r")
    wanted = settings_of(config, "3d_fullres")
    described = records.read_json(files.fingerprint)
    plan = planning.plan_configuration(described, records.read_cohort(files.cohort), "3d_fullres", wanted, 8)
    assert plan.num_outputs == 1
    assert 5 < plan.target_scale < 60
    plan = dataclasses.replace(plan, widths=(planning.Width(8, 0.01),))
    records.write_json(files.plan("3d_fullres"), dataclasses.asdict(plan))
    for fold in range(5):
        preprocess("r", "3d_fullres", fold)
    train("r", "3d_fullres", 0, json.dumps(config["train"]), device="cpu")
    settings = {"train_mirror": [], "memory_gib": 8, "deterministic": True, **config["predict"]}
    inference("r", "3d_fullres", 0, json.dumps(settings), device="cpu")
    predict("r", "3d_fullres", 0, json.dumps(settings), device="cpu")
    (case,) = [case for case in records.read_cases(files.checked_cases) if case.fold == 0]
    (score,) = measure_case(case, {"3d_fullres": files.mask("3d_fullres", case.case)})
    assert score.rmse < root_mean_square_error(read_ras(case.label)[0], np.float32(0)) / 2
