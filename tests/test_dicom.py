"""DICOM series, written as scanners do: one file per slice, in no order, with no suffix."""

import locale

import nibabel as nib
import numpy as np
import pytest

from pipeline import dicom
from pipeline.check.problem import Refused
from pipeline.dicom import find_series, only_series, own_locale, read_series
from pipeline.errors import CohortError, ImageError
from pipeline.formats import standardise

SHAPE, SPACING_MM = (9, 7, 5), (0.7, 1.1, 2.5)
RIGHT, DOWN = np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.8, 0.6])  # LPS; slices lean forward
NORMAL = np.cross(RIGHT, DOWN)
FIRST_MM = np.array([-30.0, 12.5, 40.0])
HU = np.random.default_rng(3).integers(-1000, 1500, SHAPE).astype(np.int16)


@own_locale()
def write_series(folder, uid="1.2.3", positions_mm=None, voxels=HU, right=RIGHT, down=DOWN, tags=()):
    """Slices with rescaled values, in files whose names are in another order than their positions."""
    sitk = pytest.importorskip("SimpleITK")
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetImageIO("GDCMImageIO")
    number = voxels.shape[2]
    if positions_mm is None:
        positions_mm = FIRST_MM + np.arange(number)[:, None] * SPACING_MM[2] * NORMAL
    for index in range(number):
        image = sitk.GetImageFromArray(voxels[:, :, index].T)
        image.SetSpacing(SPACING_MM[:2])
        for key, value in {
            "0008|0060": "CT",
            "0020|000e": uid,
            "0020|000d": "1.2.3.4",
            "0008|0018": f"{uid}.{index + 1}",
            "0020|0013": str(index + 1),
            "0020|0032": "\\".join(f"{value:.6f}" for value in positions_mm[index]),
            "0020|0037": "\\".join(f"{value:.6f}" for value in (*right, *down)),
            **dict(tags),
        }.items():
            image.SetMetaData(key, value)
        path = folder / f"IM{(index * 3) % number:04d}{uid[-1]}.dcm"
        writer.SetFileName(str(path))
        writer.Execute(image)
        path.rename(path.with_suffix(""))


def affine_by_hand():
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2] = RIGHT * SPACING_MM[0], DOWN * SPACING_MM[1], NORMAL * SPACING_MM[2]
    lps[:3, 3] = FIRST_MM
    return np.diag([-1, -1, 1, 1]) @ lps


def test_a_series_is_read_with_its_values_on_its_grid_in_the_order_of_its_slices(tmp_path):
    write_series(tmp_path / "anna")
    stored = read_series(only_series(tmp_path).files)
    assert (stored.voxels[..., 0] == HU).all()
    assert stored.affine == pytest.approx(affine_by_hand(), abs=1e-4)
    assert stored.problems == []


def test_reading_a_series_leaves_the_locale_as_it_was(tmp_path):
    write_series(tmp_path / "scan")
    before = locale.setlocale(locale.LC_ALL)
    standardise(tmp_path / "scan", tmp_path / "scan.nii.gz")
    assert locale.setlocale(locale.LC_ALL) == before


def test_series_are_named_after_their_folder_and_after_their_uid_where_there_are_several(tmp_path):
    write_series(tmp_path / "anna" / "ct", uid="1.2.3")
    write_series(tmp_path / "ben", uid="1.2.4")
    write_series(tmp_path / "ben", uid="1.2.5")
    (tmp_path / "ben" / "notes.txt").write_text("not a scan")
    assert [series.name for series in find_series(tmp_path)] == ["anna_ct", "ben_1.2.4", "ben_1.2.5"]
    assert [len(series.files) for series in find_series(tmp_path)] == [5, 5, 5]
    assert only_series(tmp_path / "anna" / "ct").name == "ct"


def test_a_converted_series_is_kept_until_its_files_change(tmp_path):
    write_series(tmp_path / "anna")
    path = tmp_path / "out" / "anna.nii.gz"
    assert standardise(tmp_path / "anna", path) == []
    image, before = nib.load(path), path.stat().st_mtime_ns
    assert image.get_data_dtype() == np.int16
    assert (np.asarray(image.dataobj) == HU).all()
    assert image.affine == pytest.approx(affine_by_hand(), abs=1e-4)
    standardise(tmp_path / "anna", path)
    assert path.stat().st_mtime_ns == before
    write_series(tmp_path / "anna", voxels=HU + np.int16(1))
    standardise(tmp_path / "anna", path)
    assert (np.asarray(nib.load(path).dataobj) == HU + 1).all()


def along(steps_mm, aside_mm=0.0):
    """Positions at these distances along the normal, each further aside by so much."""
    aside = np.arange(len(steps_mm))[:, None] * aside_mm * RIGHT
    return FIRST_MM + np.array(steps_mm)[:, None] * NORMAL + aside


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions_mm": along([0, 2.5, 5, 10, 12.5])}, r"slices up to .* mm off even steps .* Is one missing\?"),
        ({"positions_mm": along([0, 2.5, 5, 7.5, 10], aside_mm=0.5)}, r"gantry tilt of 11\.3 degrees"),
        ({"positions_mm": along([0, 2.5, 2.5, 5, 7.5])}, "2 slices at one place"),
        ({"voxels": HU[:, :, :1]}, "one DICOM file found"),
    ],
    ids=["missing", "tilted", "twice", "single"],
)
def test_slices_that_are_no_straight_even_grid_are_refused_with_the_measure(tmp_path, changes, message):
    write_series(tmp_path / "anna", **changes)
    with pytest.raises(ImageError, match=message):
        read_series(only_series(tmp_path).files)


def test_slices_of_several_directions_are_refused(tmp_path):
    write_series(tmp_path / "anna")
    write_series(tmp_path / "b", voxels=HU[:, :, :1], down=np.array([0.0, 1.0, 0.0]))
    (file,) = (tmp_path / "b").iterdir()
    with pytest.raises(ImageError, match="several sizes, spacings or directions"):
        read_series((*only_series(tmp_path / "anna").files, file))


@pytest.mark.parametrize(
    ("positions_mm", "rule"),
    [(along([0, 2.5, 5.04, 7.5, 10]), "dicom-uneven"), (along([0, 2.5, 5, 7.5, 10], aside_mm=0.015), "dicom-tilt")],
)
def test_slices_a_little_off_are_taken_as_even_and_that_is_said(tmp_path, positions_mm, rule):
    write_series(tmp_path / "anna", positions_mm=positions_mm)
    stored = read_series(only_series(tmp_path).files)
    assert [(problem.severity, problem.rule) for problem in stored.problems] == [("fix", rule)]
    assert stored.affine == pytest.approx(affine_by_hand(), abs=1e-3)


@pytest.mark.parametrize("uids", [[], ["1.2.3", "1.2.4"]], ids=["none", "two"])
def test_a_folder_without_one_series_is_refused_with_their_number(tmp_path, uids):
    for uid in uids:
        write_series(tmp_path, uid=uid)
    with pytest.raises(Refused, match=f"{len(uids)} DICOM series .* found, one expected. Give each series a folder"):
        standardise(tmp_path, tmp_path / "copy.nii.gz")


def test_one_series_of_a_folder_of_several_can_be_asked_for(tmp_path):
    write_series(tmp_path / "anna", uid="1.2.3")
    write_series(tmp_path / "anna", uid="1.2.4", voxels=HU + np.int16(1))
    second = find_series(tmp_path / "anna")[1]
    standardise(tmp_path / "anna", tmp_path / "copy.nii.gz", series=second.files)
    assert (np.asarray(nib.load(tmp_path / "copy.nii.gz").dataobj) == HU + 1).all()


def test_a_slice_that_cannot_be_read_is_refused_by_name(tmp_path):
    write_series(tmp_path / "anna")
    series = only_series(tmp_path)
    whole = series.files[2].read_bytes()
    series.files[2].write_bytes(whole[:200])
    with pytest.raises(ImageError, match=r"cannot be read|no tag"):
        read_series(series.files)


def test_without_dicom_files_nothing_is_imported_and_without_simpleitk_it_is_said(tmp_path, monkeypatch):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.txt").write_text("x" * 200)
    monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
    assert find_series(tmp_path / "scans") == []
    (tmp_path / "scans" / "IM1").write_bytes(b"\0" * dicom.MAGIC_AT + dicom.MAGIC)
    with pytest.raises(CohortError, match="pip install simpleitk"):
        find_series(tmp_path / "scans")
