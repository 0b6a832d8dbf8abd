"""Every layout gives the same cases, is recognised for a stated reason, and refused by name where it contradicts itself."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import SCHEMA
from pipeline.discover import main
from pipeline.errors import CohortError
from pipeline.layouts import bids, folders, msd, nnunet, table, watched
from pipeline.layouts.found import Wanted, subject_of
from pipeline.layouts.recognise import READERS, SIGNS, recognise
from pipeline.paths import Results
from pipeline.records import NO_FOLD, Case, read_cases, read_cohort

LAYOUTS = ["msd", "nnunet-1", "nnunet-2", "nnunet-2-dataset", "bids", "folders", "table-tsv", "table-csv"]
CASES = [f"sub-{number:02d}" for number in range(1, 9)] + ["sub-09_ses-a", "sub-09_ses-b"]
LABELS = {"0": "background", "1": "liver", "2": "spleen"}
CHANNELS = {"0": "T1w", "1": "FLAIR"}
WANTED = Wanted(labels={"1": "liver", "2": "spleen"}, channels={"0": "T1w"})
SETTINGS: dict[str, Any] = {
    "folds": 3,
    "seed": 12345,
    "layout": "auto",
    "labels": {"1": "liver", "2": "spleen"},
    "ignore_label": None,
    "regions": [],
    "task": "segmentation",
}


def put(path: Path, content: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def put_json(path: Path, content: object) -> Path:
    return put(path, json.dumps(content))


def lay_out(place: Path, layout: str, num_channels: int = 1) -> Path:
    """The ten cases; each file says what it is. What to give as `cohort:`."""
    channels = dict(list(CHANNELS.items())[:num_channels])
    kind, _, variant = layout.partition("-")
    for case in CASES:
        for number, suffix in channels.items():
            put(place / _image(kind, case, int(number), suffix, num_channels), f"{case} {number}")
        put(place / _label(kind, case), f"{case} label")
    by_name = {name: int(value) for value, name in LABELS.items()}
    rows = [
        {"image": _image("nnunet", case, 0, "", 2).replace("_0000", "" if layout == "nnunet-1" else "_0000")}
        | {"label": _label("nnunet", case)}
        for case in CASES
    ]
    if layout == "msd":
        rows = [
            {"image": _image(kind, case, 0, "", num_channels), "label": _label(kind, case), "subject": subject_of(case)}
            for case in CASES
        ]
    if layout in ("msd", "nnunet-1"):
        put_json(place / "dataset.json", {"modality": channels, "labels": LABELS, "training": rows})
    if variant.startswith("2"):
        more: dict[str, object] = {"file_ending": ".nii.gz"}
        if variant == "2-dataset":
            images = {case: [_image(kind, case, int(number), "", 2) for number in channels] for case in CASES}
            more = {"dataset": {case: {"images": images[case], "label": _label(kind, case)} for case in CASES}}
        put_json(place / "dataset.json", {"channel_names": channels, "labels": by_name, **more})
    if kind == "bids":
        describe_bids(place)
    if kind == "table":
        delimiter = {"tsv": "\t", "csv": ","}[variant]
        columns = ["site", "case", "subject", *(f"image_{number}" for number in channels), "label"]
        lines = []
        for case in reversed(CASES):
            images = [_image(kind, case, int(number), "", num_channels) for number in channels]
            lines.append(["here", case, subject_of(case), *images, _label(kind, case)])
        return put(place / f"cases.{variant}", "\n".join(delimiter.join(line) for line in [columns, *lines]) + "\n\n")
    return place


def describe_bids(place: Path) -> None:
    put_json(place / "dataset_description.json", {"Name": "Livers", "BIDSVersion": "1.9.0"})
    made = {"Name": "by hand", "BIDSVersion": "1.9.0", "DatasetType": "derivative", "GeneratedBy": [{"Name": "manual"}]}
    put_json(place / "derivatives" / "manual" / "dataset_description.json", made)


def _image(kind: str, case: str, channel: int, suffix: str, num_channels: int) -> str:
    if kind == "bids":
        return f"{'/'.join(case.split('_'))}/anat/{case}_{suffix}.nii.gz"
    folder = {"folders": "images", "table": "anywhere"}.get(kind, "imagesTr")
    return (
        f"{folder}/{case}_{channel:04d}.nii.gz" if num_channels > 1 or kind == "nnunet" else f"{folder}/{case}.nii.gz"
    )


def _label(kind: str, case: str) -> str:
    if kind == "bids":
        return f"derivatives/manual/{'/'.join(case.split('_'))}/anat/{case}_dseg.nii.gz"
    return f"{ {'folders': 'labels', 'table': 'elsewhere'}.get(kind, 'labelsTr') }/{case}.nii.gz"


def refused(message: str) -> Any:
    """A CohortError of one line that matches `message` and says what was expected."""
    return pytest.raises(CohortError, match=f"^(?=[^\n]*expected)[^\n]*{message}[^\n]*$")


# The same cases ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_channels", [1, 2])
def test_the_same_ten_cases_are_the_same_table_in_every_layout_but_for_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_channels: int
) -> None:
    monkeypatch.chdir(tmp_path)
    tables, cohorts = [], []
    for layout in LAYOUTS:
        place = lay_out(Path("scans") / layout, layout, num_channels)
        channels = dict(list(CHANNELS.items())[:num_channels])
        main(layout, str(place), json.dumps(SETTINGS | {"channels": channels}))
        cases = read_cases(Results(layout).cases)
        for case in cases:
            contents = [path.read_text() for path in (*case.channels, case.label) if path]
            assert contents == [*(f"{case.case} {number}" for number in range(num_channels)), f"{case.case} label"]
            assert not case.channels[0].is_absolute()
        tables.append([(case.case, case.subject, case.split, case.fold, len(case.channels)) for case in cases])
        cohorts.append(replace(read_cohort(Results(layout).cohort), name="", layout=""))
    assert [row[0] for row in tables[0]] == CASES
    assert tables == [tables[0]] * len(LAYOUTS)
    assert cohorts == [cohorts[0]] * len(LAYOUTS)
    assert cohorts[0].labels == {0: "background", 1: "liver", 2: "spleen"}


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        ("msd", "dataset.json lists imagesTr/sub-01.nii.gz"),
        ("nnunet-1", "dataset.json lists imagesTr/sub-01.nii.gz and the file is sub-01_0000.nii.gz"),
        ("nnunet-2", "dataset.json has channel_names and lists no training cases"),
        ("bids", "sub-01/ is there"),
        ("folders", "images/ and labels/ are there"),
        ("table-tsv", "cases.tsv is a table"),
    ],
)
def test_a_layout_is_recognised_and_says_why(tmp_path: Path, layout: str, reason: str) -> None:
    assert recognise(lay_out(tmp_path, layout), "auto") == (layout.partition("-")[0], reason)


def test_two_layouts_that_fit_have_to_be_decided(tmp_path: Path) -> None:
    lay_out(tmp_path, "folders")
    lay_out(tmp_path, "bids")
    fitting = re.escape("bids (sub-01/ is there) and folders (images/ and labels/ are there) fit, one expected")
    with refused(f"layouts {fitting}.*`layout: bids`"):
        recognise(tmp_path, "auto")
    assert recognise(tmp_path, "folders") == ("folders", "`layout` of config.yaml says so")
    assert len(folders.read(tmp_path, WANTED).cases) == 10


def test_a_file_of_both_the_decathlons_and_nnunets_name_has_to_be_decided(tmp_path: Path) -> None:
    lay_out(tmp_path, "nnunet-1")
    put(tmp_path / "imagesTr" / "sub-01.nii.gz")
    with refused(r"layouts msd \(.*\) and nnunet \(.*\) fit"):
        recognise(tmp_path, "auto")


def test_no_layout_at_all_shows_what_is_there(tmp_path: Path) -> None:
    with refused(r"nowhere: no such folder found, .* Correct `cohort:`"):
        recognise(tmp_path / "nowhere", "auto")
    with refused("nothing found, one of these"):
        recognise(tmp_path, "auto")
    put(tmp_path / "a.nii.gz")
    with refused(r"a\.nii\.gz found, one of these expected: dataset\.json"):
        recognise(tmp_path, "auto")
    with refused(r"a\.nii\.gz: a\.nii\.gz found, one of these"):
        recognise(tmp_path / "a.nii.gz", "auto")


def test_every_layout_that_is_recognised_is_read_and_can_be_set() -> None:
    assert list(SIGNS) == list(READERS)
    assert SCHEMA["properties"]["layout"]["enum"] == ["auto", *SIGNS]


@pytest.mark.parametrize(
    ("layout", "missing"), [("msd", "dataset.json"), ("nnunet", "dataset.json"), ("folders", "images")]
)
def test_a_layout_that_was_set_and_is_not_there_is_refused(tmp_path: Path, layout: str, missing: str) -> None:
    with refused(f"no (such folder|{re.escape(missing)}) found"):
        READERS[layout](tmp_path, WANTED)


def test_a_session_belongs_to_its_subject() -> None:
    assert [subject_of(case) for case in ("sub-1_ses-2", "a_ses-", "b", "c_d_ses-pre")] == [
        "sub-1",
        "a_ses-",
        "b",
        "c_d",
    ]


@pytest.mark.parametrize("layout", ["folders", "table-tsv"])
def test_names_that_no_file_has_are_asked_of_config_yaml(tmp_path: Path, layout: str) -> None:
    place = lay_out(tmp_path, layout)
    read = READERS[layout.partition("-")[0]]
    with refused(r"labels 0 found, .*`labels: \{1: liver\}`"):
        read(place, Wanted(channels={"0": "CT"}))
    with refused(r"`channels` of config\.yaml is \{\}, .*`channels: \{0: CT\}`"):
        read(place, Wanted(labels={"1": "liver"}))
    with refused(r"`channels` of config\.yaml is \{'1': 'CT'\}"):
        read(place, Wanted(labels={"1": "liver"}, channels={"1": "CT"}))


# nnU-Net -------------------------------------------------------------------------------------------------------------


def describe_nnunet(place: Path, **changes: object) -> Path:
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
    put_json(place / "dataset.json", described | changes)
    for folder in ("imagesTr", "labelsTr"):
        (place / folder).mkdir(exist_ok=True)
    return place


def test_labels_of_several_values_are_regions_and_ignore_is_not_a_label(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "active": 3, "ignore": 4}
    describe_nnunet(tmp_path, labels=labels, regions_class_order=[1, 2, 3])
    put(tmp_path / "imagesTr" / "a_0000.nii.gz")
    cohort = nnunet.read(tmp_path, Wanted()).cohort
    assert cohort.regions == {"whole": [1, 2, 3], "core": [2, 3], "active": [3]}
    assert list(cohort.regions) == ["whole", "core", "active"]
    assert cohort.labels == {0: "background", 1: "unnamed", 2: "unnamed", 3: "active"}
    assert cohort.ignore_label == 4
    assert nnunet.read(tmp_path, Wanted(regions={"all": [1, 2, 3]})).cohort.regions == {"all": [1, 2, 3]}
    assert watched.config_of(tmp_path) == {"regions": dict(cohort.regions), "ignore_label": 4}


def test_regions_that_nnunet_would_paint_with_other_values_are_refused(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    describe_nnunet(tmp_path, labels=labels, regions_class_order=[2, 1])
    with refused(r"`regions_class_order` is \[2, 1\], \[1, 2\] expected"):
        nnunet.read(tmp_path, Wanted())


def test_a_missing_channel_or_label_is_left_to_check(tmp_path: Path) -> None:
    describe_nnunet(tmp_path, channel_names={"0": "T1", "1": "T2"})
    put(tmp_path / "imagesTr" / "a_0001.nii.gz")
    put(tmp_path / "imagesTr" / ".a_0000.nii.gz")
    put(tmp_path / "imagesTr" / "a_0000.json")
    images = tmp_path / "imagesTr"
    expected = Case("a", "a", NO_FOLD, None, (images / "a_0000.nii.gz", images / "a_0001.nii.gz"))
    assert nnunet.read(tmp_path, Wanted()).cases == [expected]


def test_file_ending_says_which_files_are_scans(tmp_path: Path) -> None:
    describe_nnunet(tmp_path, file_ending=".png")
    put(tmp_path / "imagesTr" / "a_0000.png")
    put(tmp_path / "imagesTr" / "b_0000.nii.gz")
    assert [case.case for case in nnunet.read(tmp_path, Wanted()).cases] == ["a"]
    describe_nnunet(tmp_path, file_ending="png")
    with refused("`file_ending` is 'png', something like '.nii.gz'"):
        nnunet.read(tmp_path, Wanted())


def test_colour_pictures_hold_all_channels_in_one_file(tmp_path: Path) -> None:
    describe_nnunet(tmp_path, file_ending=".png", channel_names={"0": "R", "1": "G", "2": "B"})
    picture = put(tmp_path / "imagesTr" / "a_0000.png")
    assert nnunet.read(tmp_path, Wanted()).cases[0].channels == (picture,) * 3


def test_another_number_of_cases_than_declared_is_refused(tmp_path: Path) -> None:
    describe_nnunet(tmp_path, numTraining=2)
    put(tmp_path / "imagesTr" / "a_0000.nii.gz")
    with refused(r"imagesTr: 1 cases found, 2 by `numTraining` of dataset\.json expected"):
        nnunet.read(tmp_path, Wanted())


@pytest.mark.parametrize("name", ["a.nii.gz", "a_0001.nii.gz"])
def test_a_scan_without_a_channel_that_is_declared_is_refused(tmp_path: Path, name: str) -> None:
    describe_nnunet(tmp_path)
    put(tmp_path / "imagesTr" / name)
    with refused(f"{re.escape(name)}: a name that ends in _0000 to _0000"):
        nnunet.read(tmp_path, Wanted())


def test_a_label_without_a_scan_is_refused(tmp_path: Path) -> None:
    describe_nnunet(tmp_path)
    for name in "ab":
        put(tmp_path / "labelsTr" / f"{name}.nii.gz")
    with refused(r"labelsTr/a\.nii\.gz: no image found in .*imagesTr, a_0000\.nii\.gz expected \(and so of 1 more\)"):
        nnunet.read(tmp_path, Wanted())


def test_no_case_or_no_folder_is_refused(tmp_path: Path) -> None:
    describe_nnunet(tmp_path)
    with refused(r"dataset\.json: no case found"):
        nnunet.read(tmp_path, Wanted())
    (tmp_path / "labelsTr").rmdir()
    with refused("labelsTr: no such folder found"):
        nnunet.read(tmp_path, Wanted())


@pytest.mark.parametrize(
    "entry", [[], {"images": ["a"]}, {"images": ["a", "b"], "label": "c"}, {"images": [1], "label": "c"}]
)
def test_an_odd_entry_of_dataset_is_refused(tmp_path: Path, entry: object) -> None:
    describe_nnunet(tmp_path, dataset={"x": entry})
    with refused("case x of `dataset` is .*, `images` with 1 files and a `label`"):
        nnunet.read(tmp_path, Wanted())
    describe_nnunet(tmp_path, dataset=[entry])
    with refused("`dataset` is .*, files by case"):
        nnunet.read(tmp_path, Wanted())


def split(*held_out: str) -> list[dict[str, list[str]]]:
    return [{"train": sorted(set("abc") - set(val)), "val": list(val)} for val in held_out]


def test_splits_of_nnunet_are_the_folds(tmp_path: Path) -> None:
    describe_nnunet(tmp_path)
    for name in "abc":
        put(tmp_path / "imagesTr" / f"{name}_0000.nii.gz")
    put_json(tmp_path / "splits_final.json", split("b", "ac"))
    assert [case.fold for case in nnunet.read(tmp_path, Wanted()).cases] == [1, 0, 1]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({}, "case a found in no fold, in `val` of one fold"),
        ([{"val": []}], "not nnU-Net's splits .KeyError: 'train'."),
        ([7], "not nnU-Net's splits .TypeError"),
        (split("ab", "bc"), "case b found in folds 0, 1, in `val` of one fold"),
        (split("ab"), "case c found in no fold"),
        (split("ab", "cx"), "case x found in folds 1, no such case in imagesTr: none expected"),
        (
            [{"train": ["b"], "val": ["a"]}],
            r"fold 0 trains with 1 cases, the 2 that are not in its `val` expected \(see c\)",
        ),
    ],
)
def test_splits_that_are_no_folds_are_refused(tmp_path: Path, splits: object, message: str) -> None:
    describe_nnunet(tmp_path)
    for name in "abc":
        put(tmp_path / "imagesTr" / f"{name}_0000.nii.gz")
    put_json(tmp_path / "splits_final.json", splits)
    with refused(message):
        nnunet.read(tmp_path, Wanted())


# BIDS ----------------------------------------------------------------------------------------------------------------


def bids_of(place: Path, *files: str) -> Path:
    describe_bids(place)
    for file in files:
        put(place / file)
    return place


T1W, FLAIR = "sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_FLAIR.nii.gz"
DERIVED = "derivatives/manual/sub-1/anat"


def test_the_only_kind_of_scan_is_the_channel_and_dseg_tsv_names_the_labels(tmp_path: Path) -> None:
    bids_of(tmp_path, T1W, f"{DERIVED}/sub-1_dseg.nii.gz", f"{DERIVED}/sub-1_space-MNI_dseg.nii.gz")
    put(tmp_path / "derivatives" / "manual" / "dseg.tsv", "index\tname\n0\tnothing\n1\tliver\n")
    found = bids.read(tmp_path, Wanted())
    assert found.cohort.name == "Livers"
    assert found.cohort.channels == {0: "T1w"}
    assert found.cohort.labels == {0: "nothing", 1: "liver"}
    assert found.cases == [Case("sub-1", "sub-1", NO_FOLD, tmp_path / DERIVED / "sub-1_dseg.nii.gz", (tmp_path / T1W,))]


def test_a_mask_is_one_label_called_by_its_description(tmp_path: Path) -> None:
    bids_of(tmp_path, T1W, f"{DERIVED}/sub-1_desc-lesion_mask.nii.gz")
    assert bids.read(tmp_path, Wanted()).cohort.labels == {0: "background", 1: "lesion"}


def test_a_channel_of_bids_may_be_written_in_capitals(tmp_path: Path) -> None:
    bids_of(tmp_path, "sub-1/ct/sub-1_ct.nii.gz", T1W, f"{DERIVED}/sub-1_desc-lesion_mask.nii.gz")
    assert bids.read(tmp_path, Wanted(channels={"0": "CT"})).cohort.channels == {0: "CT"}


@pytest.mark.parametrize(
    ("files", "channels", "message"),
    [
        ([T1W, FLAIR], {}, r"2 kinds of scan found, one or several of FLAIR, T1w expected.*`channels: \{0: FLAIR\}`"),
        ([T1W], {"0": "T2w"}, "channels T2w of config.yaml found, one or several of T1w"),
        ([T1W, "sub-2/anat/sub-2_FLAIR.nii.gz"], {"0": "T1w", "1": "FLAIR"}, "sub-1 has no FLAIR, T1w, FLAIR of every"),
        (
            [T1W, "sub-1/anat/sub-1_run-2_T1w.nii.gz"],
            {},
            "sub-1: .*, .*sub-1_run-2_T1w.nii.gz found, one of them expected",
        ),
        ([T1W, f"{DERIVED}/sub-1_desc-b_dseg.nii.gz"], {}, "sub-1: .*, .*_dseg.nii.gz found, one of them expected"),
        (
            [T1W, "derivatives/manual/sub-2/anat/sub-2_dseg.nii.gz"],
            {},
            "sub-2_dseg.nii.gz: no T1w of this session found",
        ),
    ],
)
def test_scans_that_are_not_one_for_each_session_are_refused(
    tmp_path: Path, files: list[str], channels: dict[str, str], message: str
) -> None:
    bids_of(tmp_path, *files, f"{DERIVED}/sub-1_dseg.nii.gz")
    with refused(message):
        bids.read(tmp_path, Wanted(labels={"1": "liver"}, channels=channels))


def test_bids_without_label_maps_or_for_values_is_refused(tmp_path: Path) -> None:
    bids_of(tmp_path, T1W)
    with refused(r"derivatives: no label map found, .* List the cases in a table"):
        bids.read(tmp_path, Wanted())
    with refused("label maps of a segmentation expected"):
        bids.read(tmp_path, Wanted(task="regression"))


def test_a_dataset_without_a_description_is_read_and_called_after_its_folder(tmp_path: Path) -> None:
    bids_of(tmp_path, T1W, f"{DERIVED}/sub-1_desc-lesion_mask.nii.gz")
    (tmp_path / "dataset_description.json").unlink()
    assert bids.read(tmp_path, Wanted()).cohort.name == tmp_path.name


def test_a_description_that_pybids_cannot_read_is_one_line(tmp_path: Path) -> None:
    bids_of(tmp_path, T1W, f"{DERIVED}/sub-1_dseg.nii.gz")
    put(tmp_path / "derivatives" / "manual" / "dataset_description.json", "{\n")
    with refused(r"not read by pybids \(.*\), a BIDS dataset expected\. List the cases in a table"):
        bids.read(tmp_path, Wanted())


def test_derivatives_in_one_folder_are_read_too(tmp_path: Path) -> None:
    bids_of(tmp_path, T1W, "derivatives/sub-1/anat/sub-1_desc-lesion_mask.nii.gz")
    (tmp_path / "derivatives" / "manual" / "dataset_description.json").rename(
        tmp_path / "derivatives" / "dataset_description.json"
    )
    label = tmp_path / "derivatives" / "sub-1" / "anat" / "sub-1_desc-lesion_mask.nii.gz"
    assert bids.read(tmp_path, Wanted()).cases[0].label == label


def test_tables_of_labels_that_are_none_or_contradict_each_other_are_refused(tmp_path: Path) -> None:
    bids_of(tmp_path, T1W, f"{DERIVED}/sub-1_dseg.nii.gz")
    first = put(tmp_path / "derivatives" / "manual" / "dseg.tsv", "value\tname\n1\tliver\n")
    with refused(r"dseg\.tsv: no names of labels found \(KeyError\('index'\)\), columns `index`"):
        bids.read(tmp_path, Wanted())
    put(first, "index\tname\n1\tliver\n")
    put(tmp_path / DERIVED / "sub-1_dseg.tsv", "index\tname\n1\tspleen\n")
    with refused("label 1 is '(liver|spleen)', '(liver|spleen)' as in another table"):
        bids.read(tmp_path, Wanted())


# Folders -------------------------------------------------------------------------------------------------------------


def folders_of(place: Path, *images: str, labels: tuple[str, ...] = ()) -> Path:
    for folder in ("images", "labels"):
        (place / folder).mkdir(parents=True)
    for image in images:
        put(place / "images" / image)
    for label in labels:
        put(place / "labels" / label)
    return place


@pytest.mark.parametrize(
    ("images", "cases"),
    [
        (["a.nii.gz", "b.nrrd"], ["a", "b"]),
        (["a_0000.nii", "b_0000.nii"], ["a", "b"]),
        (["p_0000.nii", "p_0001.nii"], ["p_0000", "p_0001"]),
        (["series/1.dcm", "series/2.dcm", "b.mha"], ["b", "series"]),
        ([".DS_Store", "a.json", "a.nii"], ["a"]),
    ],
)
def test_a_scan_in_images_is_a_case(tmp_path: Path, images: list[str], cases: list[str]) -> None:
    assert [case.case for case in folders.read(folders_of(tmp_path, *images), WANTED).cases] == cases


def test_several_channels_in_one_file_are_that_file_for_each(tmp_path: Path) -> None:
    wanted = replace(WANTED, channels=CHANNELS)
    place = folders_of(tmp_path, "a.nii.gz", labels=("a.mha",))
    files = (tmp_path / "images" / "a.nii.gz",) * 2
    assert folders.read(place, wanted).cases == [Case("a", "a", NO_FOLD, tmp_path / "labels" / "a.mha", files)]
    put_json(
        place / "dataset.json", {"modality": CHANNELS, "labels": LABELS, "training": [{"image": "images/a.nii.gz"}]}
    )
    assert msd.read(place, Wanted()).cases[0].channels == files
    put(place / "cases.tsv", "case\timage_0\na\timages/a.nii.gz\n")
    assert table.read(place / "cases.tsv", wanted).cases[0].channels == files


@pytest.mark.parametrize(
    ("images", "labels", "channels", "message"),
    [
        ((), (), 1, "images: no case found"),
        (("a.nii",), ("a.nii", "b.nii"), 1, r"labels/b\.nii: no image found in .*images, b with the suffix"),
        (("a.nii", "a.nii.gz"), (), 1, r"a\.nii\.gz: a\.nii found beside it, one file of each name"),
        (("a.pdf",), (), 1, r"a\.pdf: a file of no known format found"),
        (("a_0000.nii",), (), 2, r"a_0000\.nii: 2 channels declared, so _0000, _0001 of each case"),
        (("a_0000.nii", "a_0002.nii"), (), 2, "2 channels declared"),
        (("a_0000.nii", "a_0001.nii", "b.nii"), (), 2, r"b\.nii: 2 channels declared"),
        (("-a.nii",), (), 1, "case id '-a' found, 1 to 64 letters"),
        (("a.nii", "A.nrrd"), (), 1, "case id '[aA]' found twice"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(
    tmp_path: Path, images: tuple[str, ...], labels: tuple[str, ...], channels: int, message: str
) -> None:
    wanted = replace(WANTED, channels=dict(list(CHANNELS.items())[:channels]))
    with refused(message):
        folders.read(folders_of(tmp_path, *images, labels=labels), wanted)


# Tables --------------------------------------------------------------------------------------------------------------


def test_a_table_gives_subject_fold_and_split_where_it_has_them(tmp_path: Path) -> None:
    text = "\ufeffcase,image_0,label,subject,fold,split\na,a.nii,/data/a_label.nii,anna,1,train\nb,../b.nii,,,,test\n"
    cases = table.read(put(tmp_path / "cases.csv", text), WANTED).cases
    assert cases == [
        Case("a", "anna", 1, Path("/data/a_label.nii"), (tmp_path / "a.nii",)),
        Case("b", "b", NO_FOLD, None, (tmp_path / ".." / "b.nii",), "test"),
    ]


def test_the_test_split_is_counted_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"{case}\t{case}.nii\t{'test' if case in 'de' else ''}" for case in "abcde"]
    put(Path("cases.tsv"), "\n".join(["case\timage_0\tsplit", *rows]))
    main("t", "cases.tsv", json.dumps(SETTINGS | {"channels": {"0": "CT"}}))
    assert "3 cases, 2 more in the test split, 3 subjects, 3 folds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "columns none found, case and image_0 expected too, separated by tabs"),
        ("case,image_0\na,b", "columns case,image_0 found, case and image_0 expected too, separated by tabs"),
        ("case\tlabel\na\tb", "columns case, label found, image_0 expected too"),
        ("case\timage_0\n", "no case found"),
        ("case\timage_0\na\tb\tc", "line 2 has more cells than the 2 columns"),
        ("case\timage_0\n\na", "line 3 has fewer cells than the 2 columns"),
        ('case\timage_0\na\t"b', "not a table"),
        ("case\timage_0\na\t", "line 2, case 'a': no image found, one file for each of 1 channels"),
        (
            "case\timage_0\timage_1\na\tb\tc",
            "line 2, case 'a': image_0, image_1 found, one file for each of 1 channels",
        ),
        ("case\timage_0\tfold\na\tb\t-1", "line 2, case 'a': fold '-1' found, 0 or a whole number above"),
        ("case\timage_0\tsplit\na\tb\tval", "line 2, case 'a': split 'val' found, train or test expected"),
        ("case\timage_0\n../a\tb", "case id '../a' found, 1 to 64 letters"),
        ("case\timage_0\na\tb\nA\tc", "case id 'A' found twice"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    with refused(message):
        table.read(put(tmp_path / "cases.tsv", text), WANTED)


def test_a_table_in_another_encoding_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cases.tsv").write_bytes(b"case\timage_0\n\xff\tb\n")
    with refused(r"cases\.tsv: not a table \(.*UTF-8 expected"):
        table.read(tmp_path / "cases.tsv", WANTED)
    with refused(r"no table found, a file \.tsv or \.csv"):
        table.read(tmp_path, WANTED)


# What the workflow watches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["nnunet-2", "bids", "folders"])
def test_a_scan_that_is_added_changes_the_digest(tmp_path: Path, layout: str) -> None:
    lay_out(tmp_path, layout)
    before = watched.digest(tmp_path)
    assert watched.digest(tmp_path) == before
    put(tmp_path / _image(layout.partition("-")[0], "sub-77_ses-x", 0, "T1w", 1))
    assert watched.digest(tmp_path) != before


def test_descriptions_are_watched_where_there_are_any(tmp_path: Path) -> None:
    assert watched.descriptions(tmp_path / "nowhere") == []
    assert [path.name for path in watched.descriptions(lay_out(tmp_path / "a", "msd"))] == ["dataset.json"]
    place = lay_out(tmp_path / "b", "table-csv")
    assert watched.descriptions(place) == [place]
    assert watched.digest(place) != watched.digest(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["", "[]", '{"labels": 7}', '{"labels": {"1": "liver"}}'])
def test_a_description_without_regions_adds_nothing_to_the_configuration(tmp_path: Path, content: str) -> None:
    put(tmp_path / "dataset.json", content)
    assert watched.config_of(tmp_path) == {}
