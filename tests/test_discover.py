"""The stage, and MSD layout: ids, names, folds, and one clear line for every `dataset.json` that cannot be used."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import records
from pipeline.discover import DEMO_CASES, main, refuse_unknown_values
from pipeline.errors import CohortError
from pipeline.layouts import msd
from pipeline.layouts.found import Wanted
from pipeline.layouts.recognise import recognise
from pipeline.paths import Results
from pipeline.records import NO_FOLD, Case, Cohort

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "data"
SETTINGS: dict[str, Any] = {
    "folds": 2,
    "seed": 12345,
    "layout": "auto",
    "labels": {},
    "channels": {},
    "ignore_label": None,
    "regions": [],
    "task": "segmentation",
}


def entry(name: str, **more: object) -> dict[str, object]:
    return {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz", **more}


def describe(folder: Path, **changes: object) -> Path:
    """Write a `dataset.json` that is sound but for `changes`; None removes a key. No scan is there: none is needed."""
    description = {
        "name": "Odd",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "spleen"},
        "training": [entry("case_b"), entry("case_a"), entry("case_c")],
    } | changes
    folder.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in description.items() if value is not None}
    (folder / "dataset.json").write_text(json.dumps(kept))
    return folder


def read(
    folder: Path, labels: Mapping[str, str] | None = None, channels: Mapping[str, str] | None = None
) -> tuple[Cohort, list[Case]]:
    found = msd.read(folder, Wanted(labels=labels or {}, channels=channels or {}))
    return found.cohort, found.cases


def refused(message: str) -> Any:
    """A CohortError of one line that matches `message` and says what was expected."""
    return pytest.raises(CohortError, match=f"^(?=[^\n]*expected)[^\n]*{message}[^\n]*$")


# What is read --------------------------------------------------------------------------------------------------------


def test_cases_are_sorted_by_id_and_take_it_from_the_file_name(tmp_path: Path) -> None:
    _, cases = read(describe(tmp_path, training=[entry("b.1"), {"image": "scans/a.nii", "label": "masks/m.nii"}]))
    assert [case.case for case in cases] == ["a", "b.1"]
    assert [case.subject for case in cases] == ["a", "b.1"]
    assert cases[0].channels == (tmp_path / "scans" / "a.nii",)
    assert cases[0].label == tmp_path / "masks" / "m.nii"


def test_a_subject_of_dataset_json_is_honoured(tmp_path: Path) -> None:
    training = [entry("a", subject="anna"), entry("b", subject="anna"), entry("c")]
    assert [case.subject for case in read(describe(tmp_path, training=training))[1]] == ["anna", "anna", "c"]


def test_a_case_without_a_label_is_left_to_check(tmp_path: Path) -> None:
    _, cases = read(describe(tmp_path, training=[{"image": "a.nii"}]))
    assert cases[0].label is None


def test_labels_and_channels_of_the_settings_win_over_those_of_dataset_json(tmp_path: Path) -> None:
    cohort, _ = read(describe(tmp_path), labels={"2": "milz", "3": "niere"}, channels={"0": "MRI"})
    assert cohort.labels == {0: "background", 1: "liver", 2: "milz", 3: "niere"}
    assert cohort.channels == {0: "MRI"}


@pytest.mark.parametrize("declared", [{"0": "background", "1": "liver"}, {"background": 0, "liver": 1, "ignore": 9}])
def test_the_ignore_label_is_no_label_whether_declared_or_not(tmp_path: Path, declared: dict[str, Any]) -> None:
    cohort = msd.read(describe(tmp_path, labels=declared), Wanted(ignore_label=9)).cohort
    assert cohort.labels == {0: "background", 1: "liver"}
    assert cohort.declared == {0, 1, 9}


def test_regions_are_groups_of_declared_labels_in_the_order_of_the_settings(tmp_path: Path) -> None:
    cohort = msd.read(describe(tmp_path), Wanted(regions={"whole": [1, 2], "core": [2]})).cohort
    refuse_unknown_values(cohort)
    assert [(one.label, one.values, one.painted) for one in cohort.targets] == [("whole", (1, 2), 1), ("core", (2,), 2)]
    records.write_cohort(tmp_path / "cohort.json", cohort)
    assert records.read_cohort(tmp_path / "cohort.json") == cohort
    with refused(re.escape("regions.whole: [0, 7] found, labels of the cohort (1 liver, 2 spleen) expected")):
        refuse_unknown_values(replace(cohort, regions={"whole": [0, 1, 7]}))


def test_labels_may_be_written_name_first_and_background_may_be_left_out(tmp_path: Path) -> None:
    cohort, _ = read(describe(tmp_path, modality=None, channel_names={"0": "T1"}, labels={"spleen": 5, "liver": 1}))
    assert cohort == Cohort("Odd", "MSD", {0: "background", 1: "liver", 5: "spleen"}, {0: "T1"})


def test_a_cohort_without_a_name_is_named_after_its_folder(tmp_path: Path) -> None:
    assert read(describe(tmp_path / "livers", name=None))[0].name == "livers"


def test_several_channels_are_one_file_each(tmp_path: Path) -> None:
    describe(tmp_path, modality={"1": "T2", "0": "T1"}, training=[entry("a_0000"), entry("b_0000")])
    cohort, cases = read(tmp_path)
    assert cohort.channels == {0: "T1", 1: "T2"}
    assert [case.case for case in cases] == ["a", "b"]
    assert [path.name for path in cases[1].channels] == ["b_0000.nii.gz", "b_0001.nii.gz"]


# What is refused -----------------------------------------------------------------------------------------------------


def test_a_folder_without_dataset_json_is_told_which_layout_is_expected(tmp_path: Path) -> None:
    with refused(r"no dataset\.json found, .*Medical Segmentation Decathlon.* Point `cohort:`"):
        read(tmp_path)


@pytest.mark.parametrize("content", [b'{"name": ', b"", b"\xff\xfe\xfd"])
def test_invalid_json_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "dataset.json").write_bytes(content)
    with refused(r"dataset\.json: not JSON \(.*\), valid JSON expected"):
        read(tmp_path)


def test_json_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("[1, 2]")
    with refused("a list found, a JSON object"):
        read(tmp_path)


@pytest.mark.parametrize("training", [None, [], {}, "imagesTr"])
def test_no_training_case_is_refused(tmp_path: Path, training: object) -> None:
    with refused("no case found, a list of them under `training`"):
        read(describe(tmp_path, training=training))


@pytest.mark.parametrize(
    "bad", ["a.nii.gz", {"label": "a.nii"}, {"image": ["a.nii", "b.nii"]}, {"image": "a.nii", "subject": 7}]
)
def test_an_entry_that_names_no_image_is_refused_with_its_number(tmp_path: Path, bad: object) -> None:
    with refused(f"training entry 1 is {re.escape(repr(bad))}, "):
        read(describe(tmp_path, training=[entry("a"), bad]))


@pytest.mark.parametrize("labels", [None, ["liver"], "liver"])
def test_labels_that_are_no_mapping_are_refused(tmp_path: Path, labels: object) -> None:
    with refused(r"`labels` is .*, something like \{\"0\": \"background\", \"1\": \"liver\"\}"):
        read(describe(tmp_path, labels=labels))


@pytest.mark.parametrize("labels", [{"liver": "one"}, {"whole": [1, None], "core": 2}])
def test_labels_without_integers_are_refused(tmp_path: Path, labels: object) -> None:
    with refused("`labels` is .*, one integer, or a list of them, for each name"):
        read(describe(tmp_path, labels=labels))


@pytest.mark.parametrize(("labels", "found"), [({"0": "background"}, "0"), ({"-1": "x", "1": "y"}, "-1, 0, 1")])
def test_labels_need_a_foreground_and_none_below_0(tmp_path: Path, labels: object, found: str) -> None:
    with refused(f"labels {found} found, 0 and at least one above it"):
        read(describe(tmp_path, labels=labels))


@pytest.mark.parametrize("modality", [None, {}, ["CT"], {"1": "CT"}, {"CT": 0}])
def test_channels_that_are_not_numbered_from_0_are_refused(tmp_path: Path, modality: object) -> None:
    with refused(r"`modality` is .*, something like \{\"0\": \"CT\"\}"):
        read(describe(tmp_path, modality=modality))


def test_a_channel_of_the_settings_that_the_cohort_does_not_have_is_refused(tmp_path: Path) -> None:
    with refused(r"channel 1, 2 of `channels` in config\.yaml not found, one of 0 "):
        read(describe(tmp_path), channels={"1": "T2", "2": "FLAIR"})


@pytest.mark.parametrize("fold", [-1, "1", 0.5, True])
def test_a_fold_of_an_entry_that_is_none_is_refused(tmp_path: Path, fold: object) -> None:
    with refused(f"`fold` of training entry 1 is {fold!r}, 0 or a number above"):
        read(describe(tmp_path, training=[entry("a", fold=0), entry("b", fold=fold)]))


@pytest.mark.parametrize("name", ["-x", "..", "._a", "a b", "$(touch x)", "ä", "a" * 65, "a\n", ""])
def test_an_odd_case_id_is_refused(tmp_path: Path, name: str) -> None:
    with refused(f"case id {re.escape(repr(name))} found, 1 to 64 letters, .* Rename "):
        read(describe(tmp_path, training=[entry(name)]))


def test_ids_that_differ_in_capitals_only_are_refused(tmp_path: Path) -> None:
    with refused(r"case id 'CASE_a' found twice, in .*case_a\.nii\.gz and .*CASE_a\.nii\.gz"):
        read(describe(tmp_path, training=[entry("case_a"), entry("CASE_a")]))


# The stage -----------------------------------------------------------------------------------------------------------


def test_the_stage_writes_cases_whose_folds_are_left_to_check_and_says_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    describe(tmp_path / "scans", training=[entry("a", subject="s"), entry("b", subject="s"), entry("c")])
    main("odd", "scans", json.dumps(SETTINGS))
    cases = records.read_cases(Results("odd").cases)
    assert [(case.case, case.fold) for case in cases] == [("a", NO_FOLD), ("b", NO_FOLD), ("c", NO_FOLD)]
    assert records.read_cohort(Results("odd").cohort).layout == "MSD"
    said = capsys.readouterr().out
    assert "MSD layout in scans, for dataset.json lists ./imagesTr/a.nii.gz" in said
    assert "3 cases, 2 subjects, 2 folds" in said
    assert "labels 0 background, 1 liver, 2 spleen; channels 0 CT" in said


def test_folds_that_the_cohort_gives_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    describe(tmp_path / "scans", training=[entry("a", fold=1), entry("b", fold=0), entry("c", fold=1)])
    main("odd", "scans", json.dumps(SETTINGS))
    assert [case.fold for case in records.read_cases(Results("odd").cases)] == [1, 0, 1]


def test_paths_stay_relative_and_links_unresolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    describe(tmp_path / "real")
    os.symlink("real", "link")
    main("odd", "link", json.dumps(SETTINGS))
    assert records.read_cases(Results("odd").cases)[0].channels == (Path("link/imagesTr/case_a.nii.gz"),)


def test_more_folds_than_subjects_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    describe(tmp_path / "scans")
    with refused("3 subjects found, .* each of 4 folds"):
        main("odd", "scans", json.dumps(SETTINGS | {"folds": 4}))
    assert not Results("odd").root.exists()


def test_the_demo_is_made_below_the_results_and_read_like_any_cohort(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main("tour", "demo", json.dumps(SETTINGS | {"folds": 5}))
    cases = records.read_cases(Results("tour").cases)
    assert len(cases) == DEMO_CASES
    assert all(path.exists() for case in cases for path in (*case.channels, case.label) if path)


def test_the_command_line_ends_with_code_2_and_one_line(tmp_path: Path) -> None:
    arguments = ["--results", "odd", "--cohort", "nowhere", "--settings", json.dumps(SETTINGS)]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.discover", *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert re.fullmatch(r"CohortError: nowhere: no such folder found.*\n", done.stderr)


def test_light_stages_do_not_import_torch() -> None:
    code = "import sys, pipeline.discover, pipeline.check.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(("name", "num_cases"), [("hippocampus", 208), ("sarcoma_ct", 6)])
def test_real_cohorts_are_recognised(name: str, num_cases: int) -> None:
    if not (REAL / name).is_dir():
        pytest.skip(f"{REAL / name} is not there")
    assert recognise(REAL / name, "auto")[0] == "msd"
    _, cases = read(REAL / name)
    assert len(cases) == num_cases
    assert all(path.exists() for case in cases for path in (*case.channels, case.label) if path)
