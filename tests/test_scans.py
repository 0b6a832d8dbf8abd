"""Which files of a folder are scans, and which of them cannot be."""

import re
from dataclasses import replace

import pytest

from pipeline import records
from pipeline.errors import CohortError
from pipeline.records import NO_FOLD, Case
from pipeline.scans import find_scans
from tests.test_dicom import write_series


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def find(place, num_channels=1):
    return find_scans(place, num_channels, lambda case: place / "converted" / f"{case}.nii.gz")


def cases(place, num_channels=1):
    scans = find(place, num_channels)
    assert not any(scan.refused for scan in scans), scans
    return [scan.case for scan in scans]


def test_channels_of_a_case_are_found_in_order_and_its_label_beside_them(tmp_path):
    touch(tmp_path, "imagesTs/a_0001.nii.gz", "imagesTs/a_0000.nii.gz", "labelsTs/a.nii.gz", "imagesTs/readme.txt")
    (case,) = cases(tmp_path, num_channels=2)
    assert case.case == "a"
    assert [path.name for path in case.channels] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert case.label == tmp_path / "labelsTs" / "a.nii.gz"


def test_a_plain_folder_and_a_single_file_work(tmp_path):
    touch(tmp_path, "one.nii", "two.nii.gz")
    assert [case.case for case in cases(tmp_path)] == ["one", "two"]
    assert [case.label for case in cases(tmp_path / "one.nii")] == [None]


def test_with_one_channel_the_number_of_a_patient_belongs_to_the_case(tmp_path):
    touch(tmp_path, "p_0001.nii", "p_0002.nii", "q_0000.nii.gz", "labels/p_0002.nii", "labels/q.nii.gz")
    found = cases(tmp_path)
    assert [case.case for case in found] == ["p_0001", "p_0002", "q"]
    assert [case.label and case.label.name for case in found] == [None, "p_0002.nii", "q.nii.gz"]
    assert cases(tmp_path / "p_0001.nii")[0].case == "p_0001"


def test_without_a_nifti_file_every_dicom_series_is_a_case_of_one_channel(tmp_path):
    write_series(tmp_path / "anna")
    write_series(tmp_path / "ben" / "ct")
    scans = find(tmp_path)
    assert [(scan.case.case, scan.refused) for scan in scans] == [("anna", ""), ("ben_ct", "")]
    assert scans[0].case.channels == (tmp_path / "converted" / "anna_0000.nii.gz",)
    assert [len(scan.series) for scan in scans] == [5, 5]
    assert "a DICOM series is one channel, 2 as in training expected" in find(tmp_path, num_channels=2)[0].refused


def test_files_of_other_formats_are_scans_and_labels_too(tmp_path):
    touch(tmp_path, "images/a_0000.nrrd", "images/a_0001.nii", "labels/a.mha", "images/a_0000.raw", "images/a.png")
    (case,) = cases(tmp_path, num_channels=2)
    assert [path.name for path in case.channels] == ["a_0000.nrrd", "a_0001.nii"]
    assert case.label == tmp_path / "labels" / "a.mha"


def test_a_file_that_is_all_of_a_case_holds_all_of_its_channels(tmp_path):
    touch(tmp_path, "a.nii.gz")
    (case,) = cases(tmp_path, num_channels=2)
    assert case.channels == (tmp_path / "a.nii.gz",) * 2


def test_pictures_are_scans_where_there_is_nothing_else(tmp_path):
    touch(tmp_path, "p/a.png", "p/b.TIF", "q/a.png", "q/b.mgz")
    assert [case.case for case in cases(tmp_path / "p")] == ["a", "b"]
    assert [case.case for case in cases(tmp_path / "q")] == ["b"]


@pytest.mark.parametrize(
    ("names", "scans", "message"),
    [
        ([], "", "and no DICOM series there. Give the folder that holds the scans."),
        ([], "missing", "missing: no scan (.nii.gz .nii .nrrd"),
        (["a.txt"], "a.txt", "a.txt: one of .nii.gz .nii .nrrd"),
    ],
)
def test_where_there_is_no_scan_at_all_it_is_said(tmp_path, names, scans, message):
    touch(tmp_path, *names)
    with pytest.raises(CohortError, match=re.escape(message)):
        find(tmp_path / scans)


@pytest.mark.parametrize(
    ("names", "num_channels", "message"),
    [
        (["a_0001.nii"], 2, "a: a_0001.nii found in"),
        (["a_0000.nii", "a_0002.nii"], 2, "a_0000.nii.gz, a_0001.nii.gz expected: one file per channel"),
        (["a_0000.nii", "a_0001.nii", "a_0002.nii"], 2, "one file per channel, numbered as in training"),
        (["a.nii", "a_0000.nii"], 1, "a: a.nii, a_0000.nii found in"),
        (["a.nii", "a.nii.gz"], 1, "two files with the same name"),
    ],
)
def test_a_case_with_other_channels_than_in_training_is_refused_by_name_and_the_others_go_on(
    tmp_path, names, num_channels, message
):
    touch(tmp_path, *names, *(f"good_{channel:04d}.nii" for channel in range(num_channels)))
    refused, good = find(tmp_path, num_channels)
    assert message in refused.refused
    assert (good.case.case, good.refused) == ("good", "")


def test_two_cases_whose_masks_some_disks_would_take_for_one_are_both_refused(tmp_path):
    touch(tmp_path, "a.nii", "A.nii", "b.nii")
    assert ["another scan has the same name" in scan.refused for scan in find(tmp_path)] == [True, True, False]


def test_a_table_of_cases_gives_the_scans_of_a_test_split_with_their_labels(tmp_path):
    listed = [Case("a", "s", NO_FOLD, tmp_path / "label.nii", (tmp_path / "x.nii",), "test")]
    records.write_cases(tmp_path / "test_cases.tsv", listed)
    assert [scan.case for scan in find(tmp_path / "test_cases.tsv")] == [replace(listed[0], fold=0)]
