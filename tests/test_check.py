"""Every fault that `check` knows, made on purpose in one small scan on an oblique grid, and the message it provokes."""

import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import records
from pipeline.check.__main__ import PRINTED, main, show
from pipeline.check.case import CaseReport, check_case, check_file, row_of
from pipeline.check.cohort import same_content
from pipeline.check.outliers import RULES
from pipeline.check.problem import COLUMNS, Asked, Problem
from pipeline.errors import CohortError
from pipeline.images import grid_of, open_image, read_labels_ras, read_ras
from pipeline.layouts import msd
from pipeline.layouts.found import Wanted
from pipeline.paths import Results
from pipeline.records import Case, Cohort

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "data"
SHAPE = (9, 11, 13)
SPACING_MM = (0.7, 1.0, 2.5)
LABELS = {0: "background", 1: "liver", 2: "spleen"}
DECLARED = frozenset(LABELS)
IMAGE, LABEL_MAP = Asked(), Asked(declared=DECLARED)

Edit = Callable[[nib.Nifti1Header], None]


def oblique() -> NDArray[np.float64]:
    """15 degrees about z, then 20 about x."""
    about_z, about_x = np.deg2rad(15), np.deg2rad(20)
    z = [[np.cos(about_z), -np.sin(about_z), 0], [np.sin(about_z), np.cos(about_z), 0], [0, 0, 1]]
    x = [[1, 0, 0], [0, np.cos(about_x), -np.sin(about_x)], [0, np.sin(about_x), np.cos(about_x)]]
    return nib.affines.from_matvec(np.array(x) @ z @ np.diag(SPACING_MM), [-31.0, 17.0, 203.0])


AFFINE = oblique()


def scan(seed: int = 0) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(-1000, 1000, SHAPE).astype(np.int16)


def segmentation() -> NDArray[np.uint8]:
    """Label 1 touches the border."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[:3, 2:5, :] = 1
    labels[5:7, 5:7, 5:7] = 2
    return labels


def save(
    path: Path,
    array: NDArray | None = None,
    affine: NDArray[np.float64] = AFFINE,
    *,
    edit: Edit = lambda header: None,
    kind: type[nib.Nifti1Image] = nib.Nifti1Image,
    endianness: str = "<",
) -> Path:
    """A scan with equal qform and sform; `edit` works on its header bytes after nibabel has made them sound."""
    image = kind(scan() if array is None else array, affine)
    image.set_qform(affine, 1, strip_shears=True)
    image.set_sform(affine, 1)
    content = image.to_bytes()
    size = image.header.sizeof_hdr
    header = type(image.header)(content[:size], check=False)
    edit(header)
    content = header.as_byteswapped(endianness).binaryblock + content[size:]
    if endianness == ">":
        voxels = np.asarray(image.dataobj)
        content = content[: -voxels.nbytes] + voxels.astype(voxels.dtype.newbyteorder(">")).tobytes(order="F")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def label(path: Path, array: NDArray | None = None, affine: NDArray[np.float64] = AFFINE) -> Path:
    return save(path, segmentation() if array is None else array, affine)


def check(case: Case) -> CaseReport:
    return check_case(case, LABEL_MAP, Results("odd").standard)


def shifted(shift_mm: float) -> NDArray[np.float64]:
    moved = AFFINE.copy()
    moved[0, 3] += shift_mm
    return moved


def only(problems: list[Problem]) -> Problem:
    assert len(problems) == 1, problems
    return problems[0]


def assert_refused(path: Path, rule: str, found: str, *, asked: Asked = IMAGE) -> None:
    report = check_file(path, asked)
    problem = only(report.problems)
    assert (problem.severity, problem.rule) == ("refuse", rule)
    assert re.search(found, problem.found), problem
    assert problem.expected
    assert problem.do
    assert report.voxels is None


def assert_sound(path: Path, asked: Asked = IMAGE) -> None:
    assert check_file(path, asked).problems == []
    _, grid = read_ras(path)  # what is accepted can be read by the stages that follow
    assert grid.shape


# Kind of file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "ä ö $(x).nii.gz"])
def test_a_sound_scan_has_no_problem_and_a_complete_row(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name)
    report = check_file(path, IMAGE)
    assert report.problems == []
    row = row_of(report, path)
    assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert row["num_bytes"] == path.stat().st_size
    assert row["shape"] == "9 11 13"
    assert row["spacing_mm"] == "0.7 1 2.5"
    assert row["orientation"] == "RAS"


def test_the_header_digest_tells_headers_apart_and_ignores_compression(tmp_path: Path) -> None:
    def digest(path: Path) -> object:
        return row_of(check_file(path, IMAGE), path)["header_sha256"]

    plain, packed = save(tmp_path / "a.nii"), save(tmp_path / "a.nii.gz")
    moved = save(tmp_path / "b.nii", affine=shifted(3.0))
    assert digest(plain) == digest(packed) != digest(moved)


def test_a_file_that_is_not_there_is_missing(tmp_path: Path) -> None:
    assert_refused(tmp_path / "a.nii", "file-missing", "no such file")


def test_a_dangling_link_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a.nii").symlink_to("nowhere")
    assert_refused(tmp_path / "a.nii", "file-missing", "a link to nothing")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path, "not-nifti", "a folder")


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.nii")
    start = time.monotonic()
    assert_refused(tmp_path / "a.nii", "not-nifti", "a pipe or device")
    assert time.monotonic() - start < 1


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"case_001 is missing", "a text file"),
        (b"RIFF" + bytes(400), "no NIfTI header"),
        (bytes(348), "no NIfTI header"),
    ],
)
def test_what_is_no_scan_is_called_what_it_is(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / "a.nii").write_bytes(content)
    assert_refused(tmp_path / "a.nii", "not-nifti", found)


def test_a_plain_file_named_gz_is_told_its_right_name(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii").rename(tmp_path / "a.nii.gz")
    assert_refused(path, "wrong-suffix", "data that is not gzip")
    assert only(check_file(path, IMAGE).problems).do.startswith("Rename it to a.nii ")


def test_a_gzip_file_named_nii_is_told_its_right_name(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz").rename(tmp_path / "a.nii")
    assert_refused(path, "wrong-suffix", "gzip data")
    assert only(check_file(path, IMAGE).problems).do == "Rename it to a.nii.gz."


def test_a_header_without_its_voxels_is_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(scan(), AFFINE), tmp_path / "a.hdr")
    assert_refused(tmp_path / "a.hdr", "not-nifti", r"^one of a pair of files \(\.hdr, \.img\)$")
    (tmp_path / "a.hdr").rename(tmp_path / "a.nii")
    assert_refused(tmp_path / "a.nii", "not-nifti", r"voxels are in another file \(\.hdr, \.img\)$")


def test_analyze_is_refused_with_a_hint(tmp_path: Path) -> None:
    nib.save(nib.AnalyzeImage(scan(), np.eye(4)), tmp_path / "a.hdr")
    assert_refused(tmp_path / "a.hdr", "not-nifti", "one of a pair of files")
    assert "Convert it to .nii.gz" in only(check_file(tmp_path / "a.hdr", IMAGE).problems).do


# Header --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_both_versions_and_both_byte_orders_are_read(
    tmp_path: Path, kind: type[nib.Nifti1Image], endianness: str
) -> None:
    path = save(tmp_path / "a.nii.gz", segmentation().astype(np.int16), kind=kind, endianness=endianness)
    assert_sound(path, LABEL_MAP)
    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), segmentation())


@pytest.mark.parametrize("codes", [(1, 0), (0, 2), (4, 4)])
def test_one_transform_is_enough(tmp_path: Path, codes: tuple[int, int]) -> None:
    def edit(header: nib.Nifti1Header) -> None:
        header["qform_code"], header["sform_code"] = codes

    assert_sound(save(tmp_path / "a.nii", edit=edit))


def test_a_qfac_of_0_means_1(tmp_path: Path) -> None:
    def edit(header: nib.Nifti1Header) -> None:
        header["pixdim"][0] = 0

    assert check_file(save(tmp_path / "a.nii", edit=edit), IMAGE).problems == []


def test_slope_and_intercept_are_accepted(tmp_path: Path) -> None:
    def edit(header: nib.Nifti1Header) -> None:
        header["scl_slope"], header["scl_inter"] = 2, -1024

    assert_sound(save(tmp_path / "a.nii", edit=edit))


def setting(field: str, value: object, index: int | slice | None = None) -> Edit:
    def edit(header: nib.Nifti1Header) -> None:
        if index is None:
            header[field] = value
        else:
            header[field][index] = value

    return edit


def both_codes_zero(header: nib.Nifti1Header) -> None:
    header["qform_code"] = header["sform_code"] = 0


def slope_0_with_intercept(header: nib.Nifti1Header) -> None:
    header["scl_slope"], header["scl_inter"] = 0, 5


def intercept_nan(header: nib.Nifti1Header) -> None:
    header["scl_slope"], header["scl_inter"] = 2, np.nan


@pytest.mark.parametrize(
    ("edit", "rule", "found"),
    [
        (setting("datatype", 9999), "header-invalid", "data code 9999"),
        (setting("vox_offset", 8), "header-invalid", "vox offset 8 too low"),
        (setting("vox_offset", np.nan), "header-invalid", "NaN"),
        (setting("sform_code", 77), "header-invalid", r"codes \[1, 77\]"),
        (setting("dim", [9, 9, 11, 13, 1, 1, 1, 1]), "header-invalid", ""),
        (setting("dim", 0, 2), "not-3d", r"shape \(9, 0, 13\)"),
        (setting("dim", -11, 2), "not-3d", r"shape \(9, -11, 13\)"),
        (setting("dim", 2, 0), "not-3d", r"shape \(9, 11\)"),
        (slope_0_with_intercept, "scale-invalid", "slope 0 with intercept 5"),
        (intercept_nan, "scale-invalid", "slope 2 with intercept nan"),
        (setting("pixdim", 0, 2), "pixdim-not-positive", r"\[0\.69.*, 0\.0, 2\.5\]"),
        (setting("pixdim", -1, 2), "pixdim-not-positive", "-1"),
        (setting("pixdim", np.nan, 2), "pixdim-not-positive", "nan"),
        (setting("xyzt_units", 5), "unit-not-mm", "unit code 5"),
        (both_codes_zero, "orientation-unknown", "both 0"),
        (setting("quatern_b", 3), "quaternion-invalid", "w2 should be positive"),
        (setting("srow_z", [0, 0, 0, 1]), "affine-singular", "; 0 0 0 1"),
        (setting("srow_x", np.nan, 3), "affine-singular", "nan"),
        (setting("pixdim", 0.001, 1), "spacing-implausible", "pixdim of .* 0.001 1 2.5 mm"),
        (setting("pixdim", 1, slice(1, 4)), "pixdim-differs", r"mm apart, .* spacing 1 1 1 mm"),
        (setting("qoffset_x", 40), "qform-sform-differ", r"71 mm apart, .* first voxel at 40 17 203 mm"),
    ],
)
def test_a_bad_header_is_refused(tmp_path: Path, edit: Edit, rule: str, found: str) -> None:
    assert_refused(save(tmp_path / "a.nii.gz", edit=edit), rule, found)


def test_a_mirroring_between_qform_and_sform_is_refused(tmp_path: Path) -> None:
    affine = np.diag([*SPACING_MM, 1.0])

    def edit(header: nib.Nifti1Header) -> None:
        header["srow_x"] *= -1

    assert_refused(save(tmp_path / "a.nii", affine=affine, edit=edit), "qform-sform-differ", "first voxel at 0 0 0 mm")


def test_micrometres_without_a_unit_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", affine=AFFINE @ np.diag([1000, 1000, 1000, 1]))
    assert_refused(path, "spacing-implausible", "700 1000 2500")


@pytest.mark.parametrize("asked", [IMAGE, Asked(num_volumes=3)])
def test_volumes_that_are_not_declared_as_channels_are_refused(tmp_path: Path, asked: Asked) -> None:
    path = save(tmp_path / "a.nii", np.repeat(scan()[..., None], 2, axis=3))
    assert_refused(path, "not-3d", r"shape \(9, 11, 13, 2\)", asked=asked)


def test_declared_channels_in_one_file_are_no_problem(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", np.repeat(scan()[..., None], 2, axis=3))
    report = check_file(path, Asked(num_volumes=2))
    assert report.problems == []
    assert report.grid
    assert report.grid.shape == SHAPE


@pytest.mark.parametrize("axes", [(1,), (1, 1)])
def test_further_axes_of_one_voxel_are_no_axes_and_that_is_said(tmp_path: Path, axes: tuple[int, ...]) -> None:
    path = save(tmp_path / "a.nii", scan().reshape(*SHAPE, *axes))
    problem = only(check_file(path, IMAGE).problems)
    assert (problem.severity, problem.rule, problem.do) == ("fix", "not-3d", "Taken: shape (9, 11, 13).")
    assert read_ras(path)[0].shape == SHAPE


@pytest.mark.parametrize(("code", "name", "per_mm"), [(3, "micron", 1000), (1, "metre", 0.001)])
def test_another_unit_is_converted_and_said(tmp_path: Path, code: int, name: str, per_mm: float) -> None:
    affine = np.diag([per_mm, per_mm, per_mm, 1]) @ AFFINE
    path = save(tmp_path / "a.nii", affine=affine, edit=setting("xyzt_units", code))
    report = check_file(path, IMAGE)
    problem = only(report.problems)
    assert (problem.severity, problem.rule, problem.found) == ("fix", "unit-not-mm", name)
    assert problem.do == "Taken: 0.7 1 2.5 mm."
    assert report.grid
    assert read_ras(path)[1].distance_mm(report.grid) < 0.01


@pytest.mark.parametrize(("code", "sizes"), [(3, "0.0007 0.001 0.0025"), (1, "700 1000 2500")])
def test_a_unit_that_cannot_be_that_of_the_numbers_is_refused(tmp_path: Path, code: int, sizes: str) -> None:
    problem = check_file(save(tmp_path / "a.nii", edit=setting("xyzt_units", code)), IMAGE).problems[-1]
    assert (problem.severity, problem.rule) == ("refuse", "spacing-implausible")
    assert sizes in problem.found


def test_a_single_slice_is_for_2d_networks_only(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", scan()[:, :, :1])
    assert_sound(path)
    assert_refused(path, "single-slice", r"shape \(9, 11, 1\)", asked=Asked(has_3d=True))


def test_an_unknown_orientation_is_taken_if_the_user_allows_it_and_warned_of(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", edit=both_codes_zero)
    report = check_file(path, Asked(allow_unknown_orientation=True))
    problem = only(report.problems)
    assert (problem.severity, problem.rule) == ("warn", "orientation-unknown")
    assert problem.do == "Axes taken for LAS, for `allow_unknown_orientation` is true."
    assert report.grid
    assert grid_of(open_image(path)).orientation == report.grid.orientation == "LAS"


@pytest.mark.parametrize(("xform", "along_x_mm"), [("qform", 40.0), ("sform", -31.0)])
def test_the_user_may_say_which_of_two_transforms_is_right(
    tmp_path: Path, xform: Literal["qform", "sform"], along_x_mm: float
) -> None:
    path = save(tmp_path / "a.nii", edit=setting("qoffset_x", 40))
    report = check_file(path, Asked(xform=xform))
    problem = only(report.problems)
    assert (problem.severity, problem.rule) == ("fix", "qform-sform-differ")
    assert problem.do == f"Taken: the {xform}, for `xform` says so."
    assert report.grid
    assert report.grid.affine[0, 3] == along_x_mm


def test_a_scan_beyond_the_memory_is_refused_with_what_it_needs(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii")
    needed_gib = 16 * 9 * 11 * 13 / 2**30
    assert_sound(path, Asked(scan_gib=needed_gib))
    found = r"^shape \(9, 11, 13\), 1.92e-05 GiB to prepare$"
    assert_refused(path, "too-large", found, asked=Asked(scan_gib=0.99 * needed_gib))


def test_complex_and_colour_voxels_are_refused(tmp_path: Path) -> None:
    assert_refused(save(tmp_path / "a.nii", scan().astype(np.complex64)), "voxel-type", "complex64")
    colour = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert_refused(save(tmp_path / "b.nii", colour), "voxel-type", "R.*G.*B")


def sheared(amount: float) -> NDArray[np.float64]:
    shear = np.eye(4)
    shear[0, 1] = amount
    return AFFINE @ shear


def test_a_large_shear_is_refused(tmp_path: Path) -> None:
    assert_refused(save(tmp_path / "a.nii", affine=sheared(0.2)), "affine-sheared", "mm apart")


def test_a_shear_below_a_tenth_of_a_voxel_is_put_right_and_said(tmp_path: Path) -> None:
    report = check_file(save(tmp_path / "a.nii", affine=sheared(0.005)), IMAGE)
    assert {problem.severity for problem in report.problems} == {"fix"}
    assert report.problems[0].rule == "affine-sheared"
    assert report.voxels


def test_rounding_of_the_affine_is_no_problem(tmp_path: Path) -> None:
    assert_sound(save(tmp_path / "a.nii", affine=AFFINE + 1e-7))


# Voxels --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [60, 352, 0.3, 0.999])
def test_a_truncated_gzip_file_is_refused(tmp_path: Path, keep: float) -> None:
    path = save(tmp_path / "a.nii.gz")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep > 1 else keep * len(content))])
    assert_refused(path, "unreadable", "ended before")


def test_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz")
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    assert_refused(path, "unreadable", "CRC check failed")


def test_a_damaged_stream_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz")
    content = bytearray(path.read_bytes())
    content[12] |= 6
    path.write_bytes(content)
    assert_refused(path, "unreadable", "Error -3 while decompressing")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_fewer_voxels_than_the_header_claims_are_refused(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, edit=setting("dim", 14, 3))
    assert_refused(path, "truncated", r"^2574 bytes of voxels$")
    assert only(check_file(path, IMAGE).problems).expected.startswith("2772 ")


def test_a_header_that_claims_terabytes_is_refused_in_little_memory(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", edit=setting("dim", 32767, slice(1, 4)))
    tracemalloc.start()
    assert_refused(path, "too-large", r"shape \(32767, 32767, 32767\), 5.24e\+05 GiB to prepare")
    assert_refused(path, "truncated", "^2574 bytes", asked=Asked(scan_gib=1e9))
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_bytes_after_the_last_voxel_are_warned_of(tmp_path: Path) -> None:
    path = label(tmp_path / "a.nii")
    path.write_bytes(path.read_bytes() + b"\xff\xff\xff")
    problem = only(check_file(path, LABEL_MAP).problems)
    assert (problem.severity, problem.rule) == ("warn", "trailing-bytes")
    assert problem.found == "3 bytes after the last voxel"


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_file_that_goes_on_and_on_is_refused_before_its_end(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name)
    with gzip.open(path, "ab") if name.endswith("gz") else path.open("ab") as handle:
        for _ in range(100):
            handle.write(bytes(1 << 20))
    assert_refused(path, "trailing-bytes", "^over 67108864 bytes after the last voxel$")


def test_voxels_that_are_no_number_are_filled_if_the_user_says_so(tmp_path: Path) -> None:
    array = scan().astype(np.float32)
    array[0, 0, 0] = np.nan
    path = save(tmp_path / "a.nii.gz", array)
    report = check_file(path, Asked(nonfinite="fill"))
    problem = only(report.problems)
    assert (problem.severity, problem.rule) == ("fix", "nonfinite")
    assert problem.found.startswith("1 voxels NaN")
    assert_refused(path, "nonfinite", "1 voxels NaN", asked=Asked(declared=DECLARED, nonfinite="fill"))


def test_the_pass_over_the_voxels_remembers_their_intensity_and_where_the_labels_lie(tmp_path: Path) -> None:
    seen = check_file(save(tmp_path / "a.nii", edit=setting("scl_slope", 2)), IMAGE).voxels
    assert seen
    assert (seen.intensity.minimum, seen.intensity.maximum) == (2 * scan().min(), 2 * scan().max())
    assert seen.intensity.median == 2 * np.median(scan())
    seen = check_file(label(tmp_path / "b.nii.gz"), LABEL_MAP).voxels
    assert seen
    assert seen.counts == {0: 9 * 11 * 13 - 117 - 8, 1: 117, 2: 8}
    centres = {value: (sums / seen.counts[value]).tolist() for value, sums in seen.index_sums.items()}
    assert centres == {1: [1, 3, 6], 2: [5.5, 5.5, 5.5]}


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, np.float32), (-np.inf, np.float64), (1e300, np.float64)])
def test_a_voxel_that_is_no_finite_float32_is_refused_with_the_count(
    tmp_path: Path, value: float, dtype: type[np.floating]
) -> None:
    array = scan().astype(dtype)
    array[8, 10, 12] = array[0, 0, 0] = value
    assert_refused(save(tmp_path / "a.nii.gz", array), "nonfinite", "^2 voxels NaN")


def test_labels_near_an_integer_are_rounded_and_said(tmp_path: Path) -> None:
    report = check_file(label(tmp_path / "a.nii.gz", segmentation() * np.float32(0.99999)), LABEL_MAP)
    problem = only(report.problems)
    assert (problem.severity, problem.rule) == ("fix", "label-not-integer")
    assert problem.found == "values up to 2e-05 from an integer"
    assert report.voxels
    assert report.voxels.counts.keys() == DECLARED


def test_half_a_label_is_refused(tmp_path: Path) -> None:
    path = label(tmp_path / "a.nii", segmentation() * np.float32(0.5))
    assert_refused(path, "label-not-integer", "up to 0.5 from", asked=LABEL_MAP)


def test_undeclared_labels_are_refused_with_value_and_voxels(tmp_path: Path) -> None:
    labels = segmentation().astype(np.int16)
    labels[0, 0, :2], labels[8, 8, 8] = 7, -3
    path = label(tmp_path / "a.nii", labels)
    assert_refused(path, "label-undeclared", "^-3 in 1 voxels, 7 in 2 voxels$", asked=LABEL_MAP)
    assert only(check_file(path, LABEL_MAP).problems).expected == "labels 0, 1, 2"


def test_many_undeclared_labels_are_not_all_listed(tmp_path: Path) -> None:
    path = label(tmp_path / "a.nii", np.arange(9 * 11 * 13, dtype=np.int16).reshape(SHAPE))
    assert_refused(path, "label-undeclared", "12 in 1 voxels and 1274 more values$", asked=LABEL_MAP)


def test_300_labels_are_no_problem(tmp_path: Path) -> None:
    path = label(tmp_path / "a.nii.gz", (np.arange(9 * 11 * 13) % 300).astype(np.uint16).reshape(SHAPE))
    assert_sound(path, Asked(declared=frozenset(range(300))))


def test_the_slope_of_a_label_map_is_applied(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", segmentation(), edit=setting("scl_slope", 2))
    assert_refused(path, "label-undeclared", "^4 in 8 voxels$", asked=LABEL_MAP)


def test_an_empty_label_map_is_warned_of(tmp_path: Path) -> None:
    problem = only(check_file(label(tmp_path / "a.nii", np.zeros(SHAPE, np.uint8)), LABEL_MAP).problems)
    assert (problem.severity, problem.rule, problem.found) == ("warn", "label-empty", "background only")


@pytest.mark.parametrize("form", ["qform", "sform", "both"])
def test_no_flipped_byte_of_a_header_raises_or_is_read_otherwise_than_checked(tmp_path: Path, form: str) -> None:
    def edit(header: nib.Nifti1Header) -> None:
        header["qform_code"], header["sform_code"] = int(form != "sform"), int(form != "qform")

    path = save(tmp_path / "a.nii", edit=edit)
    content = path.read_bytes()
    for position in range(352):
        damaged = bytearray(content)
        damaged[position] ^= 0x80 if position % 2 else 0x41
        path.write_bytes(damaged)
        report = check_file(path, IMAGE)
        if report.voxels and report.grid:
            assert grid_of(open_image(path)).distance_mm(report.grid) < 0.01, position


# Pairs ---------------------------------------------------------------------------------------------------------------


def pair(folder: Path, affine: NDArray[np.float64] = AFFINE, array: NDArray | None = None) -> Case:
    """A case whose label map has this affine and these voxels."""
    image = save(folder / "image.nii.gz")
    return Case("odd", "odd", 0, label(folder / "label.nii.gz", array, affine), (image,))


def test_corners_within_a_hundredth_of_a_millimetre_are_equal(tmp_path: Path) -> None:
    assert check(pair(tmp_path, shifted(0.009))).problems == []


def test_a_shift_below_a_tenth_of_the_smallest_spacing_is_put_right_and_said(tmp_path: Path) -> None:
    case = pair(tmp_path, shifted(0.069))
    report = check(case)
    assert only(report.problems) == Problem(
        severity="fix",
        rule="grid-differs",
        found="0.069 mm apart",
        expected="the grid of image_0 within 0.01 mm",
        do="Taken: the grid of image_0.",
        case="odd",
        file=str(case.label),
    )
    assert [row["role"] for row in report.rows] == ["image_0", "label"]


def test_a_larger_shift_is_refused_with_both_grids(tmp_path: Path) -> None:
    problem = only(check(pair(tmp_path, shifted(0.071))).problems)
    assert (problem.severity, problem.rule) == ("refuse", "grid-differs")
    assert problem.found.startswith(
        "0.071 mm apart, shape (9, 11, 13) spacing 0.7 1 2.5 mm axes RAS first voxel at -30.93 "
    )
    assert problem.expected.startswith("the grid of image_0 within 0.07 mm, shape (9, 11, 13) ")
    assert problem.do == "Resample it onto the grid of image_0 or drop the case."


def test_a_label_map_of_another_shape_is_refused(tmp_path: Path) -> None:
    problem = only(check(pair(tmp_path, array=segmentation()[:, :, :12])).problems)
    assert (problem.severity, problem.rule) == ("refuse", "grid-differs")
    assert problem.found.startswith("another shape, shape (9, 11, 12) ")


def test_a_label_map_mirrored_in_its_header_only_is_refused(tmp_path: Path) -> None:
    mirrored = AFFINE @ np.diag([-1, 1, 1, 1])
    assert only(check(pair(tmp_path, mirrored)).problems).rule == "grid-differs"


def test_grids_that_nearly_agree_but_turn_their_axes_differently_are_refused(tmp_path: Path) -> None:
    """At 45 degrees a tiny noise decides which axis is called right; the voxels would be permuted against each other."""

    def turned(degrees: float) -> NDArray[np.float64]:
        c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])

    image = save(tmp_path / "image.nii", affine=turned(44.9))
    case = Case("odd", "odd", 0, label(tmp_path / "label.nii", affine=turned(45.1)), (image,))
    problem = only(check(case).problems)
    assert (problem.severity, problem.rule) == ("refuse", "grid-differs")


def test_a_second_channel_is_held_against_the_first(tmp_path: Path) -> None:
    case = pair(tmp_path)
    other = save(tmp_path / "other.nii.gz", affine=shifted(1.0))
    channels = (*case.channels, other)
    problem = only(check(Case("odd", "odd", 0, case.label, channels)).problems)
    assert (problem.rule, problem.file) == ("grid-differs", str(other))


def test_a_case_without_a_label_is_refused(tmp_path: Path) -> None:
    report = check(Case("odd", "odd", 0, None, (save(tmp_path / "image.nii"),)))
    problem = only(report.problems)
    assert (problem.severity, problem.rule, problem.case, problem.file) == ("refuse", "label-missing", "odd", "")
    assert report.values is None


def test_a_refused_image_does_not_hide_the_faults_of_its_label_map(tmp_path: Path) -> None:
    case = pair(tmp_path, array=segmentation() + np.uint8(1))
    case.channels[0].unlink()
    assert [problem.rule for problem in check(case).problems] == ["file-missing", "label-undeclared"]


# Standard copies -----------------------------------------------------------------------------------------------------


def check_with(case: Case, **decided: object) -> CaseReport:
    asked = Asked(declared=DECLARED, **decided)  # type: ignore[arg-type]
    return check_case(case, asked, Results("odd").standard)


def test_a_file_that_is_read_as_it_is_has_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    case = pair(tmp_path)
    report = check_with(case, xform="qform", nonfinite="fill")
    assert report.case == case
    assert [row["source"] for row in report.rows] == [None, None]
    assert not Path("results").exists()


def test_channels_of_one_file_are_read_from_a_copy_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image = save(tmp_path / "image.nii.gz", np.stack([scan(0), scan(1)], axis=-1))
    case = Case("odd", "odd", 0, label(tmp_path / "label.nii.gz"), (image, image))
    report = check_with(case)
    assert report.problems == []
    copies = Results("odd").standard("odd_0000"), Results("odd").standard("odd_0001")
    assert report.case == Case("odd", "odd", 0, case.label, copies)
    assert [(row["role"], row["file"], row["source"]) for row in report.rows] == [
        ("image_0", copies[0], image),
        ("image_1", copies[1], image),
        ("label", case.label, None),
    ]
    for number, path in enumerate(copies):
        np.testing.assert_array_equal(read_ras(path)[0], scan(number))


def test_a_qform_that_counts_and_filled_voxels_are_read_from_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    array = scan().astype(np.float32)
    array[0, 0, 0] = np.nan
    edit = setting("qoffset_x", 40)
    mask = save(tmp_path / "label.nii.gz", segmentation(), edit=edit)
    case = Case("odd", "odd", 0, mask, (save(tmp_path / "image.nii.gz", array, edit=edit),))
    assert check_with(case).is_refused
    assert not Path("results").exists()
    report = check_with(case, xform="qform", nonfinite="fill")
    assert [problem.rule for problem in report.problems] == ["qform-sform-differ", "nonfinite", "qform-sform-differ"]
    assert {problem.file for problem in report.problems} == {str(case.channels[0]), str(mask)}
    assert report.case.label == Results("odd").standard("odd_label")
    voxels, grid = read_ras(report.case.channels[0])
    assert voxels[0, 0, 0] == np.nanmin(array)
    assert grid.affine[0, 3] == 40
    np.testing.assert_array_equal(read_labels_ras(report.case.label)[0], segmentation())
    assert report.rows[0]["sha256"] == records.sha256(report.case.channels[0])


def test_another_format_is_converted_and_checked_as_any_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image = tmp_path / "image.mgz"
    nib.save(nib.MGHImage(scan().astype(np.float32), AFFINE.astype(np.float32)), image)
    case = Case("odd", "odd", 0, label(tmp_path / "label.nii.gz"), (image,))
    report = check_with(case)
    assert report.problems == []
    assert report.case.channels == (Results("odd").standard("odd_0000"),)
    np.testing.assert_array_equal(read_ras(report.case.channels[0])[0], scan())
    image.write_bytes(image.read_bytes()[:2000])
    report = check_with(case)
    assert report.is_refused
    assert report.problems[0].file == str(image)
    image.unlink()
    os.mkfifo(image)
    assert check_with(case).problems[0].found == "a pipe or device"


# The stage -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """Four sound cases in two folds, with the tables of `discover`, in a working directory of their own."""
    monkeypatch.chdir(tmp_path)
    cases = []
    for number in range(4):
        image, mask = Path(f"scans/image_{number}.nii.gz"), Path(f"scans/label_{number}.nii.gz")
        save(image, scan(seed=number))
        label(mask)
        cases.append(Case(f"case_{number}", f"case_{number}", number % 2, mask, (image,)))
    tabulate(cases)
    return cases


def tabulate(cases: list[Case], labels: dict[int, str] = LABELS) -> None:
    records.write_cases(Results("odd").cases, cases)
    records.write_cohort(Results("odd").cohort, Cohort("Odd", "MSD", labels, {0: "CT"}))


def problems_found() -> list[dict[str, str]]:
    return records.read_table(Results("odd").problems)


def test_a_sound_cohort_has_a_manifest_and_an_empty_table_of_problems(
    cohort: list[Case], capsys: pytest.CaptureFixture[str]
) -> None:
    main("odd")
    assert problems_found() == []
    assert Results("odd").problems.read_text() == "\t".join(COLUMNS) + "\n"
    rows = records.read_table(Results("odd").manifest)
    assert [(row["case"], row["role"]) for row in rows[:3]] == [
        ("case_0", "image_0"),
        ("case_0", "label"),
        ("case_1", "image_0"),
    ]
    assert len(rows) == 8
    assert records.read_cases(Results("odd").checked_cases) == cohort
    first, again = capsys.readouterr().out.splitlines()
    assert first == "check: 4 cases, 8 files, 0 fixes and warnings, none refused"
    assert again.endswith("read again with `snakemake --cores 8 --forcerun check`")


def test_all_problems_of_all_files_are_found_in_one_run(cohort: list[Case], capsys: pytest.CaptureFixture[str]) -> None:
    cohort[0].channels[0].unlink()
    save(cohort[1].channels[0], edit=both_codes_zero)
    assert cohort[1].label
    label(cohort[1].label, segmentation() + np.uint8(1))
    message = (
        r"^check: 3 problems in 2 of 4 cases refused, none expected: see results/odd/check/problems\.tsv\. "
        r"Do what its last column says, or go on without these cases with `on_problem: drop`\.$"
    )
    with pytest.raises(CohortError, match=message):
        main("odd")
    assert [(row["case"], row["rule"]) for row in problems_found()] == [
        ("case_0", "file-missing"),
        ("case_1", "orientation-unknown"),
        ("case_1", "label-undeclared"),
    ]
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4
    assert printed[0].startswith("severity  rule ")
    assert {line.index("case_") for line in printed[1:]} == {printed[0].index("case")}  # aligned


def test_the_ignore_label_may_be_in_the_label_maps_and_must_be_in_one(cohort: list[Case]) -> None:
    records.write_cohort(Results("odd").cohort, Cohort("Odd", "MSD", LABELS, {0: "CT"}, ignore_label=9))
    ignoring = segmentation()
    ignoring[0] = 9
    assert cohort[0].label
    label(cohort[0].label, ignoring)
    main("odd")
    label(cohort[0].label)
    with pytest.raises(CohortError, match="1 problem in 4 of 4 cases"):
        main("odd")
    assert [row["found"] for row in problems_found()] == ["label 9 to be ignored in no case"]
    assert "Remove it from `ignore_label` of config.yaml" in problems_found()[0]["do"]


def test_refused_cases_are_dropped_if_the_user_says_so(cohort: list[Case], capsys: pytest.CaptureFixture[str]) -> None:
    cohort[1].channels[0].unlink()
    with pytest.raises(CohortError, match="or go on without these cases with `on_problem: drop`"):
        main("odd")
    assert not Results("odd").checked_cases.exists()
    main("odd", '{"on_problem": "drop"}')
    kept = [cohort[0], *cohort[2:]]
    assert records.read_cases(Results("odd").checked_cases) == kept
    assert {row["case"] for row in records.read_table(Results("odd").manifest)} == {case.case for case in kept}
    assert [(row["severity"], row["case"]) for row in problems_found()] == [("refuse", "case_1")]
    assert "check: 3 cases, 6 files, 0 fixes and warnings, 1 of 4 dropped" in capsys.readouterr().out


def test_nothing_goes_on_when_every_case_is_dropped_or_a_label_is_left_in_none(cohort: list[Case]) -> None:
    tabulate(cohort, LABELS | {9: "spine"})
    with pytest.raises(CohortError, match=r"1 problem in 4 of 4 cases .* last column says\.$"):
        main("odd", '{"on_problem": "drop"}')
    for case in cohort:
        case.channels[0].unlink()
    with pytest.raises(CohortError, match=r"4 problems in 4 of 4 cases .* last column says\.$"):
        main("odd", '{"on_problem": "drop"}')
    assert not Results("odd").checked_cases.exists()


def test_the_problems_are_there_for_programs_too(cohort: list[Case]) -> None:
    cohort[1].channels[0].unlink()
    main("odd", '{"on_problem": "drop"}')
    content = records.read_json(Results("odd").problems_json)
    assert content["num_cases"] == 4
    assert content["accepted"] == ["case_0", "case_2", "case_3"]
    assert content["refused"] == ["case_1"]
    assert content["problems"] == problems_found()


def test_an_earlier_manifest_does_not_survive_a_refusal(cohort: list[Case]) -> None:
    main("odd")
    cohort[0].channels[0].unlink()
    with pytest.raises(CohortError, match="1 problem in 1 of 4 cases"):
        main("odd")
    assert not Results("odd").manifest.exists()
    assert not Results("odd").checked_cases.exists()


def test_fixes_and_warnings_are_recorded_and_do_not_stop_the_cohort(
    cohort: list[Case], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cohort[0].label
    assert cohort[1].label
    label(cohort[0].label, np.zeros(SHAPE, np.uint8))
    label(cohort[1].label, affine=shifted(0.05))
    main("odd")
    found = [(row["severity"], row["rule"], row["case"]) for row in problems_found()]
    assert found == [("warn", "label-empty", "case_0"), ("fix", "grid-differs", "case_1")]
    assert Results("odd").manifest.exists()
    assert "8 files, 2 fixes and warnings" in capsys.readouterr().out


def test_a_declared_label_that_no_case_has_is_refused(cohort: list[Case]) -> None:
    tabulate(cohort, LABELS | {9: "spine"})
    with pytest.raises(CohortError, match="1 problem in 4 of 4 cases"):
        main("odd")
    (problem,) = problems_found()
    assert (problem["rule"], problem["case"], problem["found"]) == (
        "label-in-no-case",
        "(all)",
        "label 9 spine in no case",
    )


def test_no_label_is_called_absent_while_a_label_map_cannot_be_read(cohort: list[Case]) -> None:
    tabulate(cohort, LABELS | {9: "spine"})
    assert cohort[3].label
    cohort[3].label.unlink()
    with pytest.raises(CohortError, match="1 problem in 1 of 4 cases"):
        main("odd")


def test_one_image_in_two_folds_is_refused_and_in_one_fold_warned_of(cohort: list[Case]) -> None:
    for number in (1, 2):
        cohort[number].channels[0].write_bytes(cohort[0].channels[0].read_bytes())
    with pytest.raises(CohortError, match="1 problem in 1 of 4 cases"):
        main("odd")
    assert [(row["severity"], row["rule"], row["case"], row["found"]) for row in problems_found()] == [
        ("refuse", "same-content", "case_1", "the bytes of scans/image_0.nii.gz"),
        ("warn", "same-content", "case_2", "the bytes of scans/image_0.nii.gz"),
    ]


def test_equal_label_maps_are_no_problem() -> None:
    cases = [Case(name, name, fold, None, ()) for fold, name in enumerate("ab")]
    rows = [{"case": name, "role": "label", "file": name, "sha256": "same"} for name in "ab"]
    assert same_content(rows, cases) == []


def test_a_long_list_of_problems_is_printed_in_part(capsys: pytest.CaptureFixture[str]) -> None:
    show([Problem("warn", "rule", "found", "expected")] * (PRINTED + 3))
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + PRINTED + 1
    assert printed[-1] == "... and 3 more"


def test_the_command_line_ends_with_code_2_and_no_traceback(cohort: list[Case], tmp_path: Path) -> None:
    cohort[2].channels[0].write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.check", "--results", "odd", "--threads", "2"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("CohortError: check: 1 problem in 1 of 4 cases refused")
    assert "an empty file" in done.stdout
    assert Results("odd").problems.exists()
    assert not Results("odd").manifest.exists()


# Real scans ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hippocampus", "sarcoma_ct"])
def test_real_cohorts_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if not (REAL / name).is_dir():
        pytest.skip(f"{REAL / name} is not there")
    monkeypatch.chdir(tmp_path)
    found = msd.read(REAL / name, Wanted())
    records.write_cases(Results("real").cases, found.cases)
    records.write_cohort(Results("real").cohort, found.cohort)
    main("real", json.dumps({"folds": 3, "seed": 1}), threads=2)
    rows = records.read_table(Results("real").problems)
    assert {row["rule"] for row in rows} <= set(RULES)
    assert len(rows) < 0.03 * len(found.cases) + 1, "few are unlike the others"
    assert len(records.read_table(Results("real").manifest)) == 2 * len(found.cases)


HEADERS = {
    "analyze.hdr": "not-nifti",
    "anatomical.nii": "",
    "complex.nii.gz": "voxel-type",
    "ct_perfusion.nii.gz": "voxel-type",
    "example4d.nii.gz": "not-3d",
    "example_nifti2.nii.gz": "not-3d",
    "functional.nii": "not-3d",
    "hippo.nii.gz": "",
    "lesion.nii.gz": "",
    "low_res.nii.gz": "",
    "minimal.nii.gz": "orientation-unknown",
    "nifti1.hdr": "not-nifti",
    "ras.hdr": "not-nifti",
    "ras.img": "not-nifti",
    "reoriented_anat_moved.nii": "",
    "resampled_anat_moved.nii": "nonfinite",
    "shear.nii.gz": "affine-sheared",
    "standard.nii.gz": "",
    "truncated_gz.nii.gz": "not-3d",
    "zero_length.nii.gz": "not-nifti",
}


@pytest.mark.parametrize(("name", "rule"), HEADERS.items())
def test_awkward_real_files_are_refused_by_name_or_read_as_another_reader_does(name: str, rule: str) -> None:
    path = REAL / "headers" / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    begin = time.monotonic()
    report = check_file(path, IMAGE)
    assert time.monotonic() - begin < 2
    assert [problem.rule for problem in report.problems] == ([rule] if rule else [])
    if not rule:
        straight = nib.as_closest_canonical(nib.load(path))
        voxels, grid = read_ras(path)
        np.testing.assert_array_equal(voxels, straight.get_fdata(dtype=np.float32).reshape(voxels.shape))
        assert grid.affine == pytest.approx(straight.affine, abs=1e-4)


def test_a_truncated_file_of_several_channels_is_refused() -> None:
    path = REAL / "headers" / "truncated_gz.nii.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    assert_refused(path, "unreadable", "ended before", asked=Asked(num_volumes=3))
