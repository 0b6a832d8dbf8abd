import re

import pytest

from pipeline.errors import CohortError
from pipeline.segment import find_scans


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_channels_of_a_case_are_found_in_order_and_its_label_beside_them(tmp_path):
    touch(tmp_path, "imagesTs/a_0001.nii.gz", "imagesTs/a_0000.nii.gz", "labelsTs/a.nii.gz", "imagesTs/readme.txt")
    (case,) = find_scans(tmp_path, num_channels=2)
    assert case.case == "a"
    assert [path.name for path in case.channels] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert case.label == tmp_path / "labelsTs" / "a.nii.gz"


def test_a_plain_folder_and_a_single_file_work(tmp_path):
    touch(tmp_path, "one.nii", "two.nii.gz")
    assert [case.case for case in find_scans(tmp_path, 1)] == ["one", "two"]
    assert [case.label for case in find_scans(tmp_path / "one.nii", 1)] == [None]


@pytest.mark.parametrize(
    ("names", "scans", "message"),
    [
        ([], "", "no NIfTI file"),
        ([], "missing", "no NIfTI file"),
        (["a.nii"], "", "a: 1 channel file(s), 2 expected as in training"),
        (["a.txt"], "a.txt", "NIfTI (.nii, .nii.gz) expected"),
        (["a.nii", "a.nii.gz"], "", "same name"),
    ],
)
def test_what_cannot_be_segmented_is_refused_by_name(tmp_path, names, scans, message):
    touch(tmp_path, *names)
    with pytest.raises(CohortError, match=re.escape(message)):
        find_scans(tmp_path / scans, num_channels=1 if "same" in message else 2)
