"""Rules that need all cases: what lies in two folds, labels, folds dealt by volume, and cases unlike the others."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import records
from pipeline.check.__main__ import main
from pipeline.check.case import CaseReport
from pipeline.check.cohort import (
    folds_incomplete,
    label_volumes_ml,
    same_content,
    subject_in_two_folds,
    with_folds,
)
from pipeline.check.outliers import modality_doubtful, seen_in, unlike_others
from pipeline.check.problem import ALL_CASES, Problem
from pipeline.check.voxels import Voxels
from pipeline.errors import CohortError
from pipeline.images import Affine, Grid, ras_grid, ras_place, to_ras
from pipeline.intensity import ForegroundIntensity, describe
from pipeline.paths import Results
from pipeline.records import NO_FOLD, Case, Cohort, Split
from tests import test_check

SHAPE = (9, 11, 13)
SPACING_MM = (0.7, 1.0, 2.5)
COHORT = Cohort("Odd", "MSD", {0: "background", 1: "liver", 2: "spleen"}, {0: "CT"})
HU = describe(np.linspace(-1000, 1000, 101))


def case(name: str, subject: str = "", fold: int = NO_FOLD, split: Split = "train") -> Case:
    return Case(name, subject or name, fold, Path(f"{name}_label.nii"), (Path(f"{name}.nii"),), split)


def segmentation(liver: int = 4) -> np.ndarray:
    """A liver at the left back of an array in RAS order, and a small spleen at its right front."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[1 : 1 + liver, 1:5, 1:7] = 1
    labels[7:8, 8:10, 9:12] = 2
    return labels


def affine(*spacing_mm: float) -> Affine:
    return np.diag([*(spacing_mm or SPACING_MM), 1.0])


def report(labels: np.ndarray, to_mm: Affine | None = None, intensity: ForegroundIntensity = HU) -> CaseReport:
    """What the pass over the voxels of a sound case says."""
    grid = Grid(labels.shape, affine() if to_mm is None else to_mm)
    values = np.unique(labels)
    seen = Voxels(
        counts=Counter({int(value): int((labels == value).sum()) for value in values}),
        index_sums={int(value): np.argwhere(labels == value).sum(axis=0).astype(float) for value in values if value},
    )
    files = {"image_0": Voxels(intensity=intensity), "label": seen}
    return CaseReport(case("odd"), [], [], voxels=files, grids=dict.fromkeys(files, grid))


def look(reports: Sequence[CaseReport], cohort: Cohort = COHORT) -> list[Problem]:
    seen = [seen_in(case(f"case_{number}"), one, cohort) for number, one in enumerate(reports)]
    return unlike_others(seen, cohort)


def only(problems: Sequence[Problem]) -> Problem:
    assert len(problems) == 1, problems
    return problems[0]


# Folds and splits ----------------------------------------------------------------------------------------------------


def test_a_case_comes_back_from_its_table_with_its_split_and_without_a_fold(tmp_path: Path) -> None:
    cases = [case("a"), case("b", "s", 3), case("c", split="test")]
    records.write_cases(tmp_path / "cases.tsv", cases)
    assert records.read_cases(tmp_path / "cases.tsv") == cases
    lines = (tmp_path / "cases.tsv").read_text().splitlines()
    assert lines[:2] == ["case\tsubject\tsplit\tfold\tlabel\timage_0", "a\ta\ttrain\t\ta_label.nii\ta.nii"]


def test_folds_that_were_given_stay() -> None:
    given = [case("a", fold=1), case("b", fold=0), case("c", fold=1)]
    assert with_folds(given, {one.case: {} for one in given}, 2, 12345) == given


def test_test_cases_are_in_no_fold_and_the_others_are_dealt_by_what_their_labels_hold() -> None:
    cases = [*(case(f"c{number}") for number in range(6)), case("t", split="test")]
    volumes: Mapping[str, Mapping[int, float]] = {
        one.case: {1: 1.0, 2: float(one.case in ("c1", "c4"))} for one in cases
    }
    dealt = {one.case: one.fold for one in with_folds(cases, volumes, 2, 12345)}
    assert dealt.keys() == {f"c{number}" for number in range(6)}
    assert Counter(dealt.values()) == {0: 3, 1: 3}
    assert dealt["c1"] != dealt["c4"]


def test_a_subject_in_two_given_folds_is_refused_with_both_cases_and_both_folds() -> None:
    cases = [case("a", "anna", 0), case("b", "bea", 1), case("c", "anna", 1), case("d", "anna", 0)]
    problem = only(subject_in_two_folds(cases))
    assert (problem.severity, problem.rule, problem.case) == ("refuse", "subject-in-two-folds", "c")
    assert problem.found == "subject anna in fold 1 and, with a, in fold 0"


def test_a_subject_in_training_and_in_the_test_split_is_refused_whether_folds_are_given_or_not() -> None:
    for fold in (NO_FOLD, 0):
        problem = only(subject_in_two_folds([case("a", "anna", fold), case("t", "anna", split="test")]))
        assert problem.found.startswith("subject anna in the test split and, with a, in ")


@pytest.mark.parametrize(
    ("folds", "found"),
    [
        ([0, 1, 2], "folds 0, 1, 2 given"),
        ([1, 1, 1], "folds 1 given"),
        ([0, 1, NO_FOLD], "folds 0, 1 given, 1 cases without one"),
    ],
)
def test_folds_that_are_not_all_given_or_not_as_many_as_set_are_refused(folds: list[int], found: str) -> None:
    problem = only(folds_incomplete([case(f"c{number}", fold=fold) for number, fold in enumerate(folds)], 2))
    assert (problem.severity, problem.rule, problem.case) == ("refuse", "folds-incomplete", ALL_CASES)
    assert problem.found == found
    assert problem.expected.startswith("each of 0 to 1 for some case")


def test_all_folds_given_or_none_are_no_problem() -> None:
    assert folds_incomplete([case("a", fold=1), case("b", fold=0), case("t", split="test")], 2) == []
    assert folds_incomplete([case("a"), case("b"), case("t", split="test")], 2) == []


# Content -------------------------------------------------------------------------------------------------------------


def contents(cases: Sequence[Case]) -> list[Problem]:
    rows = [{"case": one.case, "role": "image_0", "file": f"{one.case}.nii", "sha256": "same"} for one in cases]
    return same_content(rows, cases)


def test_one_image_in_two_given_folds_or_in_training_and_test_is_refused_and_in_one_fold_warned_of() -> None:
    first = case("a", fold=0)
    assert only(contents([first, case("b", fold=0)])).severity == "warn"
    refused = only(contents([first, case("b", fold=1)]))
    assert (refused.severity, refused.rule, refused.case) == ("refuse", "same-content", "b")
    assert refused.found == "the bytes of a.nii"
    assert refused.expected == "an image of its own, not one in fold 1 and in fold 0"
    assert only(contents([first, case("b", split="test")])).severity == "refuse"


def test_one_image_of_two_subjects_is_refused_before_folds_are_dealt_and_of_one_subject_warned_of() -> None:
    assert only(contents([case("a"), case("b")])).severity == "refuse"
    assert only(contents([case("a", "anna"), case("b", "anna")])).severity == "warn"


# Labels --------------------------------------------------------------------------------------------------------------


def test_volumes_are_in_millilitres_and_of_labels_that_are_there() -> None:
    labels = segmentation()
    labels[labels == 2] = 0
    assert label_volumes_ml(report(labels), COHORT) == {1: pytest.approx(4 * 4 * 6 * 0.7 * 2.5 / 1000)}
    assert label_volumes_ml(CaseReport(case("odd"), [], []), COHORT) == {}


# Unlike the others ---------------------------------------------------------------------------------------------------


def test_a_place_in_the_file_is_found_where_the_array_in_ras_order_has_it() -> None:
    to_mm = np.array([[0, 0, -2.5, 3], [-0.7, 0, 0, 5], [0, 1.0, 0, 7], [0, 0, 0, 1]])
    labels = segmentation()
    place = (np.argwhere(labels == 1).mean(axis=0) + 0.5) / SHAPE
    turned = to_ras(labels, to_mm)
    expected = (np.argwhere(turned == 1).mean(axis=0) + 0.5) / turned.shape
    assert ras_place(place, to_mm) == pytest.approx(tuple(expected))
    assert ras_grid(Grid(SHAPE, to_mm)).shape == turned.shape


def test_cases_that_are_alike_are_no_problem() -> None:
    assert look([report(segmentation(liver)) for liver in (3, 4, 4, 5, 4, 4)]) == []


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_label_map_that_is_mirrored_under_the_same_header_is_an_outlier_in_position(axis: int) -> None:
    reports = [report(segmentation(liver)) for liver in (3, 4, 4, 5, 4, 4)]
    problem = only(look([*reports, report(np.flip(segmentation(), axis))]))
    assert (problem.severity, problem.rule, problem.case) == ("warn", "position-outlier", "case_6")
    along = ("from left to right", "from back to front", "from foot to head")[axis]
    assert f"centre of liver {along}" in problem.found
    assert f"centre of spleen {along}" in problem.found
    assert problem.expected.endswith("%, as the other cases")


def test_the_same_anatomy_in_another_order_of_axes_is_no_outlier() -> None:
    turned = report(segmentation()[::-1], affine(-0.7, 1.0, 2.5))
    assert look([*(report(segmentation(liver)) for liver in (3, 4, 4, 5, 4, 4)), turned]) == []


def test_a_coarser_spacing_and_a_larger_volume_are_outliers_with_what_is_usual() -> None:
    reports = [report(segmentation()) for _ in range(5)]
    found = look([*reports, report(segmentation(), affine(0.7, 1.0, 5.0))])
    assert [problem.rule for problem in found] == ["spacing-outlier"]
    assert found[0].found == "spacing from foot to head: 5 mm"
    assert found[0].expected == "1.667 to 3.75 mm, as the other cases"
    tiny = segmentation()
    tiny[2:, :, :7] = 0
    tiny[:, :4, :7] = 0
    assert "volume-outlier" in {problem.rule for problem in look([*reports, report(tiny)])}


def test_a_label_that_most_cases_lack_is_compared_with_those_that_have_it() -> None:
    only_liver = segmentation()
    only_liver[only_liver == 2] = 0
    assert look([report(segmentation()), *(report(only_liver) for _ in range(6))]) == []


def test_a_ct_in_another_unit_is_an_outlier_and_a_scale_of_mr_is_none() -> None:
    offset, scaled = describe(np.linspace(24, 2024, 101)), describe(1000 * np.linspace(-1000, 1000, 101))
    for other, cohort, rules in (
        (offset, COHORT, ["intensity-outlier"]),
        (scaled, replace(COHORT, channels={0: "T1"}), []),
    ):
        reports = [*(report(segmentation()) for _ in range(6)), report(segmentation(), intensity=other)]
        assert [problem.rule for problem in look(reports, cohort)] == rules


def test_four_cases_are_too_few_to_know_what_is_usual() -> None:
    assert look([*(report(segmentation()) for _ in range(3)), report(np.flip(segmentation(), 1))]) == []


def test_a_regression_has_no_labels_to_compare() -> None:
    cohort = replace(COHORT, labels={}, task="regression")
    one = replace(report(segmentation()), voxels={"image_0": Voxels(intensity=HU), "label": Voxels()})
    assert look([one] * 6, cohort) == []


# Modality ------------------------------------------------------------------------------------------------------------


def doubtful(channel: str, *intensities: ForegroundIntensity) -> list[Problem]:
    cohort = replace(COHORT, channels={0: channel})
    reports = [report(segmentation(), intensity=one) for one in intensities]
    seen = [seen_in(case(f"case_{number}"), one, cohort) for number, one in enumerate(reports)]
    return modality_doubtful(seen, cohort)


def test_a_channel_called_ct_without_hounsfield_units_is_warned_of_case_by_case() -> None:
    mr = describe(np.linspace(0, 800, 101))
    problem = only(doubtful("CT", HU, HU, mr))
    assert (problem.severity, problem.rule, problem.case, problem.file) == (
        "warn",
        "modality-doubtful",
        "case_2",
        "case_2.nii",
    )
    assert problem.found == "CT from 4 to 796"
    assert doubtful("T1", mr, mr) == []


def test_hounsfield_units_under_another_name_in_all_cases_are_said_once() -> None:
    problem = only(doubtful("contrast", HU, HU))
    assert problem.case == ALL_CASES
    assert problem.found == "contrast from -990 to 990, and so in all cases"
    assert "call the channel CT" in problem.do
    assert doubtful("ct", HU, HU) == []


# The stage -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """Seven sound cases without folds, two of one subject, and a test case without a label, as `discover` writes them."""
    monkeypatch.chdir(tmp_path)
    cases = [case(f"c{number}", "anna" if number < 2 else "") for number in range(7)]
    cases.append(replace(case("t", split="test"), label=None))
    for number, one in enumerate(cases):
        test_check.save(one.channels[0], test_check.scan(number))
        if one.label:
            test_check.label(one.label)
    records.write_cases(Results("odd").cases, cases)
    records.write_cohort(Results("odd").cohort, COHORT)
    return cases


def run_check(**changes: object) -> list[dict[str, str]]:
    main("odd", json.dumps({"folds": 3, "seed": 12345, **changes}))
    return records.read_table(Results("odd").problems)


def test_check_deals_the_folds_of_the_cases_that_are_trained_with(
    cohort: list[Case], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_check() == []
    fold_of = {one.case: one.fold for one in records.read_cases(Results("odd").checked_cases)}
    assert fold_of.keys() == {f"c{number}" for number in range(7)}
    assert fold_of["c0"] == fold_of["c1"]
    assert sorted(Counter(fold_of.values()).values()) == [2, 2, 3]
    assert [one.case for one in records.read_cases(Results("odd").test_cases)] == ["t"]
    assert "segment --config scans=results/odd/check/test_cases.tsv" in capsys.readouterr().out


def test_53_label_voxels_flipped_same_header(cohort: list[Case]) -> None:
    path = cohort[3].label
    assert path
    test_check.label(path, test_check.segmentation()[::-1])
    (row,) = run_check()
    assert (row["severity"], row["rule"], row["case"], row["file"]) == ("warn", "position-outlier", "c3", str(path))
    assert row["found"].startswith("centre of liver from left to right: 83.3")


def test_folds_are_dealt_among_the_cases_that_are_not_dropped(cohort: list[Case]) -> None:
    for one in cohort[2:5]:
        one.channels[0].unlink()
    run_check(on_problem="drop")
    checked = records.read_cases(Results("odd").checked_cases)
    assert {one.fold for one in checked} == {0, 1, 2}
    cohort[5].channels[0].unlink()
    with pytest.raises(CohortError, match="2 subjects found, one at least for each of 3 folds expected"):
        run_check(on_problem="drop")
    assert not Results("odd").manifest.exists()


def test_35_same_subject_two_folds(cohort: list[Case]) -> None:
    given = [replace(one, fold=number % 3) for number, one in enumerate(cohort[:7])]
    records.write_cases(Results("odd").cases, given)
    with pytest.raises(CohortError, match="1 problem in 1 of 7 cases refused"):
        run_check()
    (row,) = records.read_table(Results("odd").problems)
    assert (row["rule"], row["case"]) == ("subject-in-two-folds", "c1")
