"""Promises of the scores: what a mean counts, what an interval resamples, and which masks are refused."""

import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from pipeline import evaluate, records
from pipeline.bootstrap import draw_cases
from pipeline.errors import CohortError, ConfigError, ImageError
from pipeline.evaluate import Wanted, measure_case
from pipeline.paths import Results
from pipeline.records import Case, Cohort
from pipeline.summary import LESION_SHARES, SUMMARY_COLUMNS, Score, summarise
from tests.checked import write_checked

SHAPE = (9, 11, 13)
SPACING_MM = (0.7, 1.0, 2.5)
LABELS = {0: "background", 1: "liver", 4: "spleen"}
COHORT = Cohort("tiny", "table", LABELS, {0: "CT"})


ASKED_FOR = re.compile("lesion_|sq|pq|.*_voxel")


def score(case: str, label: int, dsc: float | None, **changes: Any) -> Score:
    status = "absent_ok" if dsc is None else "ok" if dsc else "missed"
    distance_mm = None if dsc is None else 10 * (1 - dsc) if dsc else math.inf
    values: dict[str, Any] = dict(
        configuration="2d",
        fold=0,
        case=case,
        label=label,
        name=f"label {label}",
        status=status,
        dsc=dsc,
        nsd=dsc,
        tolerance_mm=2.0,
        hd95_mm=distance_mm,
        hd_mm=distance_mm,
        assd_mm=distance_mm,
        reference_ml=3.0,
        prediction_ml=2.0,
        volume_difference_ml=-1.0,
        volume_difference_relative=-1 / 3,
        iou=dsc,
        sensitivity=dsc,
        precision=dsc,
        diagonal_mm=100.0,
        subject=case,
    )
    return Score(**values | changes)


def by_label(rows: list[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    return {row["label"]: row for row in rows}


def test_an_absent_label_leaves_the_mean_of_its_label_only() -> None:
    rows = by_label(summarise([score("a", 1, 0.9), score("a", 2, None), score("b", 1, 0.5), score("b", 2, 0.7)]))
    assert [rows[label]["dsc"] for label in (1, 2, "mean")] == pytest.approx([0.7, 0.7, 0.7])
    assert (rows[2]["n"], rows[2]["n_used"], rows[2]["n_absent_ok"]) == (2, 1, 1)
    assert (rows["mean"]["n"], rows["mean"]["n_used"]) == (4, 3)


def test_a_missed_label_never_improves_a_headline_number() -> None:
    good, missed = ([score("a", 1, 0.9), score("b", 1, dsc)] for dsc in (0.4, 0.0))
    before, after = by_label(summarise(good))[1], by_label(summarise(missed))[1]
    assert after["dsc"] == pytest.approx(0.45) and after["dsc"] < before["dsc"]
    assert after["hd95_mm"] == pytest.approx(1.0), "over defined cases, said so by n_missed"
    assert after["hd95_worst_mm"] == pytest.approx((1 + 100) / 2) and after["n_missed"] == 1
    assert after["hd95_worst_mm"] > before["hd95_worst_mm"]


def test_emptying_a_prediction_never_improves_a_headline_number(tmp_path: Path) -> None:
    """Any label of any case that the reference has: no mean that a report leads with gets better."""
    rng = np.random.default_rng(0)
    wanted = Wanted(1.0, True, tuple(COHORT.targets))
    by_case: dict[str, dict[str, list[Score]]] = {}
    for case in "abc":
        reference = rng.choice([0, 1, 4], SHAPE, p=[0.7, 0.2, 0.1])
        prediction = np.where(rng.random(SHAPE) < 0.7, reference, rng.choice([0, 1, 4], SHAPE))
        predictions = {"before": prediction, "1": prediction * (prediction != 1), "4": prediction * (prediction != 4)}
        one = Case(case, case, 0, write_labels(tmp_path / f"{case}.nii.gz", reference), ())
        masks = {name: write_labels(tmp_path / name / f"{case}.nii.gz", mask) for name, mask in predictions.items()}
        scores = measure_case(one, masks, cohort=COHORT, wanted=wanted)
        by_case[case] = {
            name: [replace(one, configuration="2d") for one in scores if one.configuration == name] for name in masks
        }
    before = summarise([score for case in by_case.values() for score in case["before"]])
    for emptied, label in ((case, label) for case in by_case for label in ("1", "4")):
        after = summarise(
            [score for case in by_case for score in by_case[case][label if case == emptied else "before"]]
        )
        for row, other in zip(before, after, strict=True):
            for name in ("dsc", "nsd", "iou", "sensitivity", "precision", "nsd_voxel", *LESION_SHARES):
                assert float(str(other[name])) <= float(str(row[name])) + 1e-12, name
            for name in (
                "hd95_worst_mm",
                "hd_worst_mm",
                "assd_worst_mm",
                "hd95_voxel_worst_mm",
                "hd95_voxel_pooled_worst_mm",
            ):
                assert float(str(other[name])) >= float(str(row[name])) - 1e-12, name


def test_a_label_without_any_value_has_no_mean_and_stays_out_of_the_mean_over_labels() -> None:
    rows = by_label(summarise([score("a", 1, 0.8), score("b", 1, 0.6), score("a", 2, None), score("b", 2, None)]))
    assert rows[2]["dsc"] is rows[2]["hd95_worst_mm"] is rows[2]["dsc_low"] is None
    assert rows["mean"]["dsc"] == pytest.approx(0.7)
    assert rows["mean"]["dsc_low"] == pytest.approx(rows[1]["dsc_low"])


def test_an_interval_holds_its_mean_and_is_the_same_for_the_same_seed() -> None:
    scores = [score(str(case), 1, dsc) for case, dsc in enumerate(np.linspace(0.5, 0.9, 20))]
    row = summarise(scores, seed=3)[0]
    assert 0.6 < float(str(row["dsc_low"])) < 0.7 < float(str(row["dsc_high"])) < 0.8
    assert summarise(scores, seed=3) == summarise(scores, seed=3) != summarise(scores, seed=4)


def test_an_interval_agrees_with_scipy() -> None:
    from scipy.stats import bootstrap

    dsc = np.random.default_rng(0).beta(8, 2, 40)
    row = summarise([score(str(case), 1, float(value)) for case, value in enumerate(dsc)])[0]
    expected = bootstrap((dsc,), np.mean, method="percentile", n_resamples=9999, rng=1).confidence_interval
    assert (row["dsc_low"], row["dsc_high"]) == pytest.approx((expected.low, expected.high), abs=0.006)


def test_one_subject_tells_nothing_about_a_spread() -> None:
    row = summarise([score("scan 1", 1, 0.8, subject="s"), score("scan 2", 1, 0.6, subject="s")])[0]
    assert row["dsc"] == pytest.approx(0.7) and row["dsc_low"] is None


def test_all_scans_of_a_subject_are_drawn_together() -> None:
    draws = draw_cases(["s", "t", "s", "u"], seed=0, num_resamples=50)
    assert draws.shape == (50, 4) and (draws[:, 0] == draws[:, 2]).all()
    assert (draws[:, 0] + draws[:, 1] + draws[:, 3] == 3).all()
    assert len(np.unique(draws[:, 0])) > 1


def test_configurations_are_summarised_apart_and_in_order() -> None:
    scores = [score("a", 1, 0.8, configuration="b"), score("a", 1, 0.6, configuration="a")]
    rows = summarise(scores)
    assert [row["configuration"] for row in rows] == ["b", "b", "a", "a"]
    assert [row["label"] for row in rows] == [1, "mean", 1, "mean"]


def write_labels(path: Path, voxels: Any, affine: Any = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*SPACING_MM, 1.0]) if affine is None else affine
    nib.save(nib.Nifti1Image(np.asarray(voxels, np.uint8), affine), path)
    return path


def phantom() -> Any:
    labels = np.zeros(SHAPE, np.uint8)
    labels[0:4, 2:7, 3:9] = 1  # touches the border
    labels[6:8, 2:7, 3:9] = 4
    return labels


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    """Three cases in folds 0 and 1, two configurations: `2d` is perfect, `3d` misses the spleen of case c."""
    monkeypatch.chdir(tmp_path)
    files = Results("tiny")
    labels = phantom()
    folds = {"a": 0, "b": 1, "c": 1}
    cases = [
        Case(
            name,
            name,
            fold,
            write_labels(tmp_path / f"labels/{name}.nii.gz", labels),
            (Path("unread.nii.gz"),),
        )
        for name, fold in folds.items()
    ]
    write_checked(files, cases)
    records.write_cohort(files.cohort, COHORT)
    for name in folds:
        write_labels(files.mask("2d", name), labels)
        write_labels(files.mask("3d", name), np.where(labels == 4, 0, labels) if name == "c" else labels)
    return files


def test_a_run_leaves_one_row_per_configuration_case_and_label(run: Results) -> None:
    evaluate.main(run.name, "2d,3d", "0,1", json.dumps({"tolerance_mm": 2}), threads=2)
    rows = records.read_table(run.metrics)
    assert [(row["configuration"], row["case"], row["label"]) for row in rows] == [
        (configuration, case, label) for configuration in ("2d", "3d") for case in "abc" for label in ("1", "4")
    ]
    assert list(rows[0])[:6] == ["configuration", "fold", "case", "label", "name", "status"]
    missed = rows[-1]
    assert (missed["status"], missed["dsc"], missed["hd95_mm"]) == ("missed", "0", "inf")
    assert float(missed["volume_difference_ml"]) == pytest.approx(-2 * 5 * 6 * 1.75 / 1000)
    assert float(missed["diagonal_mm"]) == pytest.approx(math.hypot(9 * 0.7, 11, 13 * 2.5), rel=1e-5)
    summary = {(row["configuration"], row["label"]): row for row in records.read_table(run.summary)}
    assert list(summary["2d", "1"]) == [one for one in SUMMARY_COLUMNS if not ASKED_FOR.match(one)]
    assert [float(summary[name, "mean"]["dsc"]) for name in ("2d", "3d")] == pytest.approx([1, (1 + 2 / 3) / 2])
    assert summary["3d", "4"]["n_missed"] == "1"


def test_lesions_are_counted_for_the_labels_asked_for(run: Results) -> None:
    settings = {"tolerance_mm": 2, "lesions": [4], "voxel_edges": True}
    evaluate.main(run.name, "2d,3d", "0,1", json.dumps(settings))
    rows = {(row["configuration"], row["case"], row["label"]): row for row in records.read_table(run.metrics)}
    assert (rows["2d", "a", "1"]["lesion_tp"], rows["2d", "a", "1"]["pq"]) == ("", "")
    assert (rows["2d", "a", "4"]["lesion_tp"], rows["2d", "a", "4"]["pq"]) == ("1", "1")
    assert (rows["3d", "c", "4"]["lesion_fn"], rows["3d", "c", "4"]["lesion_f1"]) == ("1", "0")
    measured = [rows["2d", "a", "1"][name] for name in ("nsd_voxel", "hd95_voxel_mm", "hd95_voxel_pooled_mm")]
    assert measured == ["1", "0", "0"]
    summary = {(row["configuration"], row["label"]): row for row in records.read_table(run.summary)}
    assert list(summary["3d", "4"]) == list(SUMMARY_COLUMNS)
    assert [summary["3d", "4"][name] for name in ("lesion_tp", "lesion_fp", "lesion_fn")] == ["2", "0", "1"]
    assert [summary["3d", "1"][name] for name in ("lesion_tp", "lesion_f1", "lesion_f1_low")] == ["", "", ""]
    assert float(summary["3d", "mean"]["lesion_f1"]) == pytest.approx(2 / 3, abs=1e-6)
    assert float(summary["3d", "4"]["lesion_fp_per_case"]) == 0


def test_lesions_of_all_labels_and_of_regions() -> None:
    assert evaluate.read_wanted('{"tolerance_mm": 2, "lesions": "all"}', COHORT).lesions == (*COHORT.targets,)
    regions = replace(COHORT, regions={"both": [1, 4], "spleen": [4]})
    (spleen,) = evaluate.read_wanted('{"tolerance_mm": 2, "lesions": ["spleen"]}', regions).lesions
    assert spleen.name == "spleen"


def test_lesions_of_a_label_that_the_cohort_lacks_are_refused() -> None:
    message = r"evaluate.lesions: 7 is none of the cohort's labels or regions, 1 \(liver\), 4 \(spleen\)"
    with pytest.raises(ConfigError, match=message):
        evaluate.read_wanted('{"tolerance_mm": 2, "lesions": [4, 7]}', COHORT)


def test_a_run_compares_its_configurations(run: Results) -> None:
    evaluate.main(run.name, "2d,3d", "0,1", json.dumps({"tolerance_mm": 2}))
    rows = {(row["measure"], row["label"]): row for row in records.read_table(run.comparison)}
    assert len(rows) == 3 * 3
    spleen = rows["dsc", "4"]
    assert (spleen["first"], spleen["second"], spleen["n_subjects"], spleen["effect_size"]) == ("2d", "3d", "3", "-1")
    assert float(spleen["difference"]) == pytest.approx(-1 / 3, abs=1e-6)
    evaluate.main(run.name, "2d", "0,1", json.dumps({"tolerance_mm": 2}))
    assert records.read_table(run.comparison) == [] and run.comparison.read_text().startswith("measure\tlabel")


def test_only_the_cases_of_the_given_folds_are_scored(run: Results) -> None:
    evaluate.main(run.name, "2d", "0", json.dumps({"tolerance_mm": 2}))
    assert {row["case"] for row in records.read_table(run.metrics)} == {"a"}


def test_a_label_absent_everywhere_is_an_empty_cell(run: Results) -> None:
    without = np.where(phantom() == 4, 0, phantom())
    for case in records.read_cases(run.checked_cases):
        assert case.label
        write_labels(case.label, without)
        write_labels(run.mask("2d", case.case), without)
    write_checked(run, records.read_cases(run.checked_cases))
    evaluate.main(run.name, "2d", "0,1", json.dumps({"tolerance_mm": 2}))
    row = records.read_table(run.metrics)[-1]
    assert (row["status"], row["dsc"], row["hd95_mm"], row["reference_ml"]) == ("absent_ok", "", "", "0")
    assert records.read_table(run.summary)[1]["dsc"] == ""


def test_a_mask_that_changed_since_the_ensemble_wrote_it_is_refused(run: Results) -> None:
    mask = write_labels(run.mask("ensemble", "a"), phantom())
    records.write_file_list(run.choice, records.digests([mask]))
    evaluate.main(run.name, "ensemble", "0", json.dumps({"tolerance_mm": 2}))
    write_labels(mask, phantom() * 0)
    with pytest.raises(CohortError, match=r"ensemble/a.nii.gz: changed since .*choice.json was written"):
        evaluate.main(run.name, "ensemble", "0", json.dumps({"tolerance_mm": 2}))


def test_a_flipped_file_is_measured_in_the_patients_axes(tmp_path: Path) -> None:
    """The same anatomy, stored as RAS and as LPS, is a perfect match."""
    flipped = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1])
    flipped[:2, 3] = (SHAPE[0] - 1) * SPACING_MM[0], (SHAPE[1] - 1) * SPACING_MM[1]
    reference = write_labels(tmp_path / "reference.nii.gz", phantom())
    mask = write_labels(tmp_path / "mask.nii.gz", phantom()[::-1, ::-1], flipped)
    case = Case("a", "a", 0, reference, ())
    assert [one.dsc for one in measure_case(case, {"2d": mask}, cohort=COHORT, wanted=Wanted(2))] == [1, 1]


def test_voxels_of_the_ignore_label_are_measured_as_background_in_both(tmp_path: Path) -> None:
    reference, prediction = phantom().copy(), phantom().copy()
    reference[:, :5], prediction[:, :5] = 9, 1
    case = Case("a", "a", 0, write_labels(tmp_path / "reference.nii.gz", reference), ())
    mask = write_labels(tmp_path / "mask.nii.gz", prediction)
    found = measure_case(case, {"2d": mask}, cohort=replace(COHORT, ignore_label=9), wanted=Wanted(2))
    assert {one.dsc for one in found} == {1}
    voxel_ml = float(np.prod(SPACING_MM)) / 1000
    for one in found:
        assert one.reference_ml == pytest.approx((reference == one.label).sum() * voxel_ml)


def test_regions_are_measured_under_their_names_over_all_their_labels(tmp_path: Path) -> None:
    """The mask says 1 where the reference has 4: right for the region of both, wrong for that of 4 alone."""
    case = Case("a", "a", 0, write_labels(tmp_path / "reference.nii.gz", phantom()), ())
    mask = write_labels(tmp_path / "mask.nii.gz", np.minimum(phantom(), 1))
    cohort = replace(COHORT, regions={"both": [1, 4], "spleen": [4]})
    both, spleen = measure_case(case, {"2d": mask}, cohort=cohort, wanted=Wanted(2))
    assert (both.label, both.name, both.status, both.dsc) == ("both", "both", "ok", 1)
    assert (spleen.label, spleen.status, spleen.dsc) == ("spleen", "missed", 0)
    assert [row["label"] for row in summarise([both, spleen])] == ["both", "spleen", "mean"]


def test_a_mask_of_another_shape_is_refused_with_both_shapes(tmp_path: Path) -> None:
    case = Case("a", "a", 0, write_labels(tmp_path / "reference.nii.gz", phantom()), ())
    mask = write_labels(tmp_path / "mask.nii.gz", phantom()[:-1])
    with pytest.raises(ImageError, match=r"mask.nii.gz has shape \(8, 11, 13\), reference.*\(9, 11, 13\)"):
        measure_case(case, {"2d": mask}, cohort=COHORT, wanted=Wanted(2))


def test_a_mask_elsewhere_in_space_is_refused(tmp_path: Path) -> None:
    moved = np.diag([*SPACING_MM, 1.0])
    moved[0, 3] = 5
    case = Case("a", "a", 0, write_labels(tmp_path / "reference.nii.gz", phantom()), ())
    mask = write_labels(tmp_path / "mask.nii.gz", phantom(), moved)
    with pytest.raises(ImageError, match=r"lies 5 mm off reference .* at most 0.07 mm expected"):
        measure_case(case, {"2d": mask}, cohort=COHORT, wanted=Wanted(2))


def test_what_is_written_can_be_read_back(tmp_path: Path) -> None:
    scores = [score("a", 1, 0.123456789), score("b", 1, 0.0)]
    evaluate.write_tables(tmp_path / "metrics.tsv", tmp_path / "summary.tsv", list(scores))
    rows = records.read_table(tmp_path / "metrics.tsv")
    assert list(rows[0]) == [one for one in asdict(scores[0]) if not ASKED_FOR.match(one)]
    assert rows[0]["dsc"] == "0.123457" and math.isinf(float(rows[1]["hd95_mm"]))
