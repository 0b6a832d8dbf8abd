"""Standard copies: the voxels and places of every format, and by name what cannot be told, is damaged or is not there."""

import gzip
import pickle
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine

from pipeline.check.problem import Refused
from pipeline.errors import CohortError, ImageError
from pipeline.formats import AS_IT_IS, SUFFIXES, Choices, kind_of, split_suffix, standardise
from pipeline.images import Grid, grid_of, open_image, read_ras, write_mask
from tests.test_dicom import write_series
from tests.test_images import SHAPE, SPACING, header_bytes, oblique_affine, save_edited, save_scan

sitk = pytest.importorskip("SimpleITK")
HU = np.random.default_rng(5).integers(-1000, 2000, SHAPE).astype(np.int16)
AFFINE = oblique_affine((1, 2, 0), (1, -1, 1))
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def itk_image(voxels=HU, affine=AFFINE, is_vector=False):
    """SimpleITK's image of `(I, J, K)`, or of `(I, J, K, C)`: a vector for each voxel."""
    axes = (2, 1, 0, 3)[: voxels.ndim] if is_vector else tuple(reversed(range(voxels.ndim)))
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose(axes)), isVector=is_vector)
    lps = LPS @ affine
    extra = image.GetDimension() - 3
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    direction = np.eye(image.GetDimension())
    direction[:3, :3] = lps[:3, :3] / spacing
    image.SetSpacing([*spacing, *[1.0] * extra])
    image.SetDirection(direction.ravel())
    image.SetOrigin([*lps[:3, 3], *[0.0] * extra])
    return image


def write_itk(path, *, compressed=False, **arguments):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(itk_image(**arguments), str(path), compressed)
    return path


def copy_of(path, **choices):
    target = path.with_name(f"copy_of_{path.name}.nii.gz")
    problems = standardise(path, target, Choices(**choices))
    image = nib.load(target)
    return image, np.asarray(image.dataobj), problems


def assert_refused(path, rule, message, **choices):
    with pytest.raises(Refused, match=message) as caught:
        copy_of(path, **choices)
    assert caught.value.problem.rule == rule
    assert caught.value.problem.file in (str(path), str(path.parent))
    assert not list(path.parent.glob("copy_of_*"))


# Names ---------------------------------------------------------------------------------------------------------------


def test_a_suffix_is_found_whatever_its_capitals_and_the_longest_first():
    assert split_suffix("a.b.NII.gz") == ("a.b", ".NII.gz")
    assert split_suffix("scan.gz") == ("scan.gz", "")
    assert all(split_suffix(f"x{suffix}") == ("x", suffix) for suffix in SUFFIXES)


def test_the_kind_of_a_path_is_told_by_its_name_and_of_a_folder_a_series_is_expected(tmp_path):
    kinds = {
        "a.nii": "nifti",
        "a.Nhdr": "nrrd",
        "a.mha": "metaimage",
        "a.mgz": "mgz",
        "a.TIFF": "picture",
        "a": "unknown",
    }
    assert {name: kind_of(Path(name)) for name in kinds} == kinds
    assert kind_of(tmp_path) == "dicom"


def test_a_refusal_comes_whole_out_of_another_process(tmp_path):
    with pytest.raises(Refused) as caught:
        standardise(tmp_path / "a.nrrd", tmp_path / "copy.nii.gz")
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.problem == caught.value.problem
    assert isinstance(again, ImageError)


@pytest.mark.parametrize(
    ("name", "rule", "message"),
    [
        ("a.nrrd", "file-missing", r"a\.nrrd: no file found, a scan expected"),
        ("a.dcm", "unknown-format", r"suffix '\.dcm' found, .*\.nrrd.* expected\. Convert it .* folder of the series"),
    ],
)
def test_what_is_no_scan_is_refused_by_name(tmp_path, name, rule, message):
    if rule == "unknown-format":
        (tmp_path / name).write_bytes(b"x")
    assert_refused(tmp_path / name, rule, message)


# Voxels and places ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_a_copy_has_the_voxels_at_the_places_of_its_source(tmp_path, suffix, compressed):
    path = write_itk(tmp_path / f"scan{suffix}", compressed=compressed)
    image, voxels, problems = copy_of(path)
    assert problems == []
    assert voxels.dtype == np.int16
    assert (voxels == HU).all()
    other = sitk.ReadImage(str(path))
    for corner in [(0, 0, 0), (8, 0, 0), (0, 10, 0), (0, 0, 12), (8, 10, 12)]:
        lps = np.array(other.TransformIndexToPhysicalPoint(corner))
        assert apply_affine(image.affine, corner) == pytest.approx(lps * (-1, -1, 1), abs=1e-4)
    assert int(image.header["qform_code"]) == int(image.header["sform_code"]) == 1
    assert np.allclose(image.get_qform(), image.get_sform(), atol=1e-4)
    assert read_ras(Path(image.get_filename()))[1].distance_mm(read_expected(tmp_path)) < 1e-3


def read_expected(folder):
    save_scan(folder / "expected.nii", AFFINE, HU)
    return read_ras(folder / "expected.nii")[1]


@pytest.mark.parametrize(
    ("space", "signs"),
    [("right-anterior-superior", (1, 1, 1)), ("LAS", (-1, 1, 1)), ("left-posterior-superior", (-1, -1, 1))],
)
def test_an_nrrd_written_by_hand_lies_in_the_space_that_it_names(tmp_path, space, signs):
    matrix = AFFINE[:3, :3].T  # one row for each axis of the array
    directions = " ".join(f"({','.join(repr(float(value)) for value in row)})" for row in matrix)
    origin = ",".join(repr(float(value)) for value in AFFINE[:3, 3])
    header = (
        f"NRRD0004\n# by hand\ntype: int16\ndimension: 3\nspace: {space}\nsizes: 9 11 13\nspace directions: {directions}\n"
        f"kinds: domain domain domain\nendian: big\nencoding: gzip\nspace origin: ({origin})\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(header.encode() + gzip.compress(HU.astype(">i2").tobytes(order="F")))
    image, voxels, _ = copy_of(tmp_path / "a.nrrd")
    assert (voxels == HU).all()
    assert image.affine == pytest.approx(np.diag([*signs, 1.0]) @ AFFINE, abs=1e-4)


def test_an_mgz_lies_where_its_header_says(tmp_path):
    nib.save(nib.MGHImage(HU.astype(np.int32), AFFINE), tmp_path / "a.mgz")
    header = nib.load(tmp_path / "a.mgz").header
    scaled = header["Mdc"].T * header["delta"]  # as FreeSurfer writes it: directions, sizes and the centre
    image, voxels, problems = copy_of(tmp_path / "a.mgz")
    assert (voxels == HU).all()
    assert problems == []
    assert image.affine[:3, :3] == pytest.approx(scaled, abs=1e-5)
    assert apply_affine(image.affine, np.array(SHAPE) / 2) == pytest.approx(header["Pxyz_c"], abs=1e-4)
    assert image.affine == pytest.approx(AFFINE, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "lines", "removed"),
    [
        ("a.nrrd", None, (b"space: left-posterior-superior\n", b"space dimension: 3\n")),
        ("a.nrrd", None, (b"space: left-posterior-superior\n", b"space: scanner-xyz\n")),
        ("a.mha", None, (b"TransformMatrix", b"Unknown")),
        ("a.mha", None, (b"ElementSpacing", b"Unknown")),
    ],
)
def test_a_file_that_does_not_say_how_the_patient_lies_gets_codes_0(tmp_path, name, lines, removed):
    path = write_itk(tmp_path / name)
    before, after = removed
    assert before in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(before, after))
    image, voxels, _ = copy_of(path)
    assert (voxels == HU).all()
    assert int(image.header["qform_code"]) == int(image.header["sform_code"]) == 0
    if after != b"Unknown":
        assert image.header["pixdim"][1:4] == pytest.approx(SPACING)


def edited_mgz(path, place, value):
    content = bytearray(nib.MGHImage(HU.astype(np.int32), AFFINE).to_bytes())
    content[place : place + len(value)] = value
    path.write_bytes(gzip.compress(content))
    return path


def test_an_mgz_without_directions_gets_codes_0(tmp_path):
    assert int(copy_of(edited_mgz(tmp_path / "a.mgz", 28, b"\0\1"))[0].header["sform_code"]) == 1
    copy, voxels, _ = copy_of(edited_mgz(tmp_path / "b.mgz", 28, b"\0\0"))
    assert int(copy.header["qform_code"]) == int(copy.header["sform_code"]) == 0
    assert (voxels == HU).all()


def test_an_mgz_of_voxels_of_no_known_type_is_refused(tmp_path):
    with pytest.raises(Refused, match=r"a\.mgz: what cannot be read"):
        copy_of(edited_mgz(tmp_path / "a.mgz", 20, b"\0\0\0\x63"))


def test_a_sheared_nrrd_stays_sheared_for_the_check_to_see(tmp_path):
    sheared = AFFINE.copy()
    sheared[:3, 2] += 0.1 * AFFINE[:3, 0]
    directions = " ".join(f"({','.join(repr(float(value)) for value in row)})" for row in sheared[:3, :3].T)
    header = (
        "NRRD0004\ntype: int16\ndimension: 3\nspace: right-anterior-superior\nsizes: 9 11 13\n"
        f"space directions: {directions}\nendian: little\nencoding: raw\nspace origin: (0,0,0)\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(header.encode() + HU.tobytes(order="F"))
    image, _, _ = copy_of(tmp_path / "a.nrrd")
    assert image.affine[:3, :3] == pytest.approx(sheared[:3, :3], abs=1e-5)
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (0, 1)


@pytest.mark.parametrize("direction", ["(0,0,0)", "(nan,0,1)", "(1,0,0)"])
def test_directions_that_put_the_voxels_nowhere_are_refused(tmp_path, direction):
    header = (
        "NRRD0004\ntype: int16\ndimension: 3\nspace: right-anterior-superior\nsizes: 9 11 13\n"
        f"space directions: (1,0,0) (0,1,0) {direction}\nendian: little\nencoding: raw\nspace origin: (0,0,0)\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(header.encode() + HU.tobytes(order="F"))
    with pytest.raises(Refused) as caught:
        copy_of(tmp_path / "a.nrrd")
    assert caught.value.problem.rule in ("unreadable", "affine-singular")


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("uint8", "uint8"), ("int64", "int64"), ("uint16", "uint16"), ("float32", "float32"), ("float64", "float32")],
)
def test_integers_keep_their_type_and_fractions_become_float32(tmp_path, dtype, expected):
    values = np.abs(HU).astype(dtype) // np.array(8, dtype) + np.array(0.25).astype(dtype)
    _, voxels, _ = copy_of(write_itk(tmp_path / "a.nrrd", voxels=values))
    assert voxels.dtype == expected
    assert (voxels == values.astype(expected)).all()


# Pictures ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_picture_is_one_slice_with_its_top_anterior_and_its_left_on_the_right(tmp_path, suffix):
    picture = np.arange(30, dtype=np.uint8).reshape(5, 6)  # rows from the top
    flat = sitk.GetImageFromArray(picture)
    flat.SetSpacing((0.3, 0.3))
    sitk.WriteImage(flat, str(tmp_path / f"a{suffix}"))
    image, voxels, problems = copy_of(tmp_path / f"a{suffix}")
    assert voxels.shape == (6, 5, 1)
    assert (picture == voxels[:, :, 0].T).all()
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    assert Grid(voxels.shape, image.affine).spacing_mm == (1, 1, 1)
    assert [(problem.severity, problem.rule) for problem in problems] == [("warn", "no-spacing")]


@pytest.mark.parametrize("compressed", [False, True])
def test_the_pages_of_a_tiff_are_slices(tmp_path, compressed):
    path = write_itk(tmp_path / "a.tif", voxels=np.abs(HU).astype(np.uint16), affine=np.eye(4), compressed=compressed)
    _, voxels, _ = copy_of(path)
    assert (voxels == np.abs(HU)).all()


def test_the_colours_of_a_picture_are_channels_where_they_are_declared(tmp_path):
    colours = np.random.default_rng(0).integers(0, 255, (6, 5, 3)).astype(np.uint8)
    flat = sitk.GetImageFromArray(np.ascontiguousarray(colours.transpose(1, 0, 2)), isVector=True)
    sitk.WriteImage(flat, str(tmp_path / "a.png"))
    for channel in range(3):
        (tmp_path / "copy_of_a.png.nii.gz").unlink(missing_ok=True)
        _, voxels, _ = copy_of(tmp_path / "a.png", channel=channel, num_channels=3)
        assert (voxels[..., 0] == colours[..., channel]).all()
    (tmp_path / "copy_of_a.png.nii.gz").unlink()
    (tmp_path / "copy_of_a.png.nii.gz.json").unlink()
    assert_refused(tmp_path / "a.png", "channels-differ", "3 channels in one file found, 1 as declared expected")


def test_a_tiff_that_is_to_be_turned_is_refused(tmp_path):
    path = write_itk(tmp_path / "a.tif", voxels=np.abs(HU).astype(np.uint8), affine=np.eye(4))
    upright = (274).to_bytes(2, "little") + b"\3\0\1\0\0\0" + b"\1\0"
    assert upright in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(upright, upright[:-2] + b"\6\0"))
    assert_refused(
        path, "picture-turned", "orientation 6 found, 1, the first row on top expected. Save the picture upright"
    )


def test_a_tiff_whose_pages_are_of_several_sizes_is_refused(tmp_path):
    path = write_itk(tmp_path / "a.tif", voxels=np.abs(HU).astype(np.uint8), affine=np.eye(4))
    width = (256).to_bytes(2, "little") + b"\3\0\1\0\0\0" + b"\x09\0"
    first = path.read_bytes().index(width)
    content = bytearray(path.read_bytes())
    content[first + 8] = 8
    path.write_bytes(content)
    assert_refused(path, "pages-differ", "pages of several sizes or kinds found, one expected")


def test_a_big_tiff_is_read(tmp_path):
    values = np.abs(HU[:, :, 0]).astype(np.uint8)
    strip = values.tobytes(order="F")
    entries = [
        (256, 9),
        (257, 11),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 16),
        (274, 1),
        (277, 1),
        (278, 11),
        (279, len(strip)),
    ]
    page = struct.pack("<Q", len(entries)) + b"".join(struct.pack("<HHQQ", tag, 4, 1, value) for tag, value in entries)
    header = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16 + len(strip) + 1)
    (tmp_path / "a.tif").write_bytes(header + strip + b"\0" + page + bytes(8))
    assert (copy_of(tmp_path / "a.tif")[1][:, :, 0] == values).all()


def write_slices(folder, number=11, rows=5):
    folder.mkdir(exist_ok=True)
    for index in range(number):
        picture = np.full((rows, 6), index, np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(picture), str(folder / f"s{index}.png"))


def test_a_folder_of_pictures_is_a_stack_in_the_order_of_their_numbers(tmp_path):
    write_slices(tmp_path / "a")
    assert kind_of(tmp_path / "a") == "stack"
    _, voxels, problems = copy_of(tmp_path / "a")
    assert voxels.shape == (6, 5, 11)
    assert voxels[0, 0].tolist() == list(range(11))
    assert [problem.rule for problem in problems] == ["no-spacing"]
    write_slices(tmp_path / "a", number=12)
    assert copy_of(tmp_path / "a")[1].shape == (6, 5, 12)


def test_pictures_of_several_sizes_are_no_stack(tmp_path):
    write_slices(tmp_path / "a")
    write_slices(tmp_path / "a", number=1, rows=4)
    assert_refused(tmp_path / "a", "pages-differ", r"pictures of shape \(6, 5, 1, 1\) beside \(6, 4, 1, 1\) found")


def test_a_picture_beside_other_files_makes_no_stack(tmp_path):
    write_series(tmp_path / "anna")
    write_slices(tmp_path / "anna", number=1)
    assert kind_of(tmp_path / "anna") == "dicom"
    assert copy_of(tmp_path / "anna")[1].shape == (9, 7, 5)


@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_a_tiff_without_its_last_pages_is_refused(tmp_path, kept):
    path = write_itk(tmp_path / "a.tif", voxels=np.abs(HU).astype(np.uint8), affine=np.eye(4))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    assert_refused(path, "truncated", r"\d+ pages and then the end of the file, at \d+ bytes found, all its pages")


def test_a_tiff_whose_pages_lead_back_to_its_first_is_refused(tmp_path):
    path = write_itk(tmp_path / "a.tif", voxels=np.abs(HU[..., :1]).astype(np.uint8)[:, :, 0:1], affine=np.eye(4))
    content = bytearray(path.read_bytes())
    first = int.from_bytes(content[4:8], "little")
    end = first + 2 + 12 * int.from_bytes(content[first : first + 2], "little")
    content[end : end + 4] = first.to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(Refused):
        copy_of(path)


# Channels ------------------------------------------------------------------------------------------------------------


def channels():
    return np.stack([HU, HU + np.int16(1), HU + np.int16(2)], axis=-1)


def write_channels(folder, name):
    path = folder / name
    if name == "a.mgz":
        nib.save(nib.MGHImage(channels().astype(np.int32), AFFINE), path)
    elif name == "colours.nii":
        rgb = np.abs(channels()).astype(np.uint8)
        fields = np.ascontiguousarray(rgb).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
        save_scan(path, AFFINE, fields)
        return path, rgb
    elif name.startswith("five"):
        save_scan(path, AFFINE, channels()[:, :, :, None])
    elif name.endswith(".nii.gz"):
        save_scan(path, AFFINE, channels()[..., None] if "last" in name else channels())
    elif name == "list.nrrd":
        path.write_bytes(list_nrrd())
    else:
        write_itk(path, voxels=channels(), is_vector="vector" in name)
    return path, channels()


def list_nrrd():
    """As 3D Slicer writes a sequence: channels along the last axis."""
    directions = " ".join(f"({','.join(repr(float(value)) for value in row)})" for row in AFFINE[:3, :3].T)
    origin = ",".join(repr(float(value)) for value in AFFINE[:3, 3])
    header = (
        f"NRRD0005\ntype: short\ndimension: 4\nspace: RAS\nsizes: 9 11 13 3\nspace directions: {directions} none\n"
        f"kinds: domain domain domain list\nendian: little\nencoding: raw\nspace origin: ({origin})\n\n"
    )
    return header.encode() + channels().tobytes(order="F")


@pytest.mark.parametrize(
    "name",
    ["a.nii.gz", "last.nii.gz", "five.nii", "colours.nii", "a.mgz", "list.nrrd", "vector.nrrd", "a.mha", "vector.mha"],
)
def test_each_declared_channel_of_a_file_gets_a_copy_on_the_grid_of_its_source(tmp_path, name):
    path, expected = write_channels(tmp_path, name)
    for channel in range(3):
        image, voxels, _ = copy_of(path, channel=channel, num_channels=3)
        assert voxels.shape == SHAPE
        assert (voxels == expected[..., channel]).all()
        assert image.affine == pytest.approx(AFFINE, abs=1e-4)
        assert image.header["pixdim"][1:4] == pytest.approx(SPACING)


@pytest.mark.parametrize("name", ["a.nii.gz", "colours.nii", "a.mgz", "vector.nrrd", "a.mha"])
def test_channels_that_nobody_declared_or_that_are_missing_are_refused_with_their_number(tmp_path, name):
    path, _ = write_channels(tmp_path, name)
    assert_refused(path, "channels-differ", "3 channels in one file found, 1 as declared expected. Declare")
    assert_refused(path, "channels-differ", "found, 4 as declared expected", channel=1, num_channels=4)


def test_two_axes_of_channels_are_refused_with_the_shape(tmp_path):
    save_scan(tmp_path / "a.nii", AFFINE, np.zeros((*SHAPE, 2, 3), np.int16))
    assert_refused(tmp_path / "a.nii", "not-3d", r"shape \(9, 11, 13, 2, 3\) found, three axes and one of channels")
    path = write_itk(tmp_path / "a.mha", voxels=np.zeros((*SHAPE, 2, 2), np.int16))
    assert_refused(path, "not-3d", "5 axes found, two or three, and one of channels expected")


def test_complex_numbers_are_refused(tmp_path):
    save_scan(tmp_path / "a.nii", AFFINE, HU.astype(np.complex64))
    assert_refused(tmp_path / "a.nii", "voxel-type", "complex64 voxels found, one integer or real number")


# Choices -------------------------------------------------------------------------------------------------------------


def test_numbers_that_are_not_finite_are_filled_by_the_nearest_end_of_the_others(tmp_path):
    values = HU.astype(np.float64) / 7
    values[0, 0, :4] = np.nan, np.inf, -np.inf, 1e300
    save_scan(tmp_path / "a.nii", AFFINE, values)
    image, voxels, problems = copy_of(tmp_path / "a.nii", fill=True)
    rest = values[np.isfinite(values) & (values < 1e30)].astype(np.float32)
    assert voxels[0, 0, :4].tolist() == [rest.min(), rest.max(), rest.min(), rest.max()]
    assert (voxels.ravel()[4:] == values.ravel()[4:].astype(np.float32)).all()
    assert [(problem.severity, problem.rule, problem.found[:8]) for problem in problems] == [
        ("fix", "nonfinite", "4 voxels")
    ]
    assert problems[0].do.startswith(f"Taken: {rest.min():g}, the lowest value, for NaN and -inf")
    assert header_bytes(image.get_filename()) == header_bytes(tmp_path / "a.nii")


def test_nothing_finite_cannot_be_filled_and_without_the_choice_nothing_is(tmp_path):
    save_scan(tmp_path / "a.nii", AFFINE, np.full(SHAPE, np.nan, np.float32))
    assert_refused(tmp_path / "a.nii", "nonfinite", "1287 voxels NaN.* found, some finite number expected", fill=True)
    assert np.isnan(copy_of(tmp_path / "a.nii")[1]).all()


def disagreeing(header):
    header["qoffset_x"] += 5
    header["sform_code"] = 2


@pytest.mark.parametrize(("form", "code", "shift_mm"), [("sform", 2, 0), ("qform", 1, 5)])
def test_the_affine_that_was_chosen_is_both_affines_of_the_copy(tmp_path, form, code, shift_mm):
    data = save_edited(tmp_path / "a.nii", disagreeing, AFFINE, HU)
    image, voxels, _ = copy_of(tmp_path / "a.nii", xform=form)
    expected = AFFINE + np.pad([[shift_mm]], ((0, 3), (3, 0)))
    assert (voxels == data).all()
    assert image.get_sform() == pytest.approx(expected, abs=1e-4)
    assert image.get_qform() == pytest.approx(expected, abs=1e-4)
    assert int(image.header["qform_code"]) == int(image.header["sform_code"]) == code


def test_an_affine_that_is_not_there_cannot_be_chosen(tmp_path):
    def lose(header):
        header["qform_code"] = 0

    save_edited(tmp_path / "a.nii", lose, AFFINE, HU)
    assert_refused(tmp_path / "a.nii", "xform-missing", "no qform found, a qform, for `xform` is that", xform="qform")


def test_a_scaled_scan_is_copied_with_its_values(tmp_path):
    def scale(header):
        header["scl_slope"], header["scl_inter"] = 0.5, -100

    save_edited(tmp_path / "a.nii", scale, AFFINE, HU)
    _, voxels, _ = copy_of(tmp_path / "a.nii")
    assert voxels.dtype == np.float32
    assert (voxels == HU * np.float32(0.5) - 100).all()


# Files that are not whole --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "compressed"),
    [
        ("a.nrrd", False),
        ("a.nrrd", True),
        ("a.mha", False),
        ("a.mha", True),
        ("a.mgz", None),
        ("a.png", None),
    ],
)
@pytest.mark.parametrize("damage", ["half", "end", "empty", "text"])
def test_a_damaged_file_is_refused(tmp_path, name, compressed, damage):
    path = tmp_path / name
    if name == "a.mgz":
        nib.save(nib.MGHImage(HU.astype(np.int32), AFFINE), path)
    elif name == "a.png":
        sitk.WriteImage(sitk.GetImageFromArray(np.abs(HU[0]).astype(np.uint8)), str(path))
    else:
        write_itk(path, compressed=compressed)
    whole = path.read_bytes()
    cut = {"half": whole[: len(whole) // 2], "end": whole[:-3], "empty": b"", "text": b"version https://git-lfs\n"}
    path.write_bytes(cut[damage])
    with pytest.raises(Refused) as caught:
        copy_of(path)
    assert caught.value.problem.rule in ("unreadable", "truncated")
    assert caught.value.problem.file == str(path)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mgz"])
def test_one_wrong_bit_in_compressed_voxels_is_seen(tmp_path, name):
    path = tmp_path / name
    if name == "a.mgz":
        nib.save(nib.MGHImage(HU.astype(np.int32), AFFINE), path)
    else:
        write_itk(path, compressed=True)
    whole = bytearray(path.read_bytes())
    whole[-300] ^= 1
    path.write_bytes(whole)
    with pytest.raises(Refused):
        copy_of(path)


def test_compressed_voxels_that_are_more_or_fewer_than_the_header_says_are_refused(tmp_path):
    path = write_itk(tmp_path / "a.mha", compressed=True)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"DimSize = 9 11 13", b"DimSize = 9 11 12"))
    assert_refused(path, "truncated", r"\d+ bytes of voxels found, 2376 as the header says expected")


@pytest.mark.parametrize("name", ["a.nrrd", "a.mgz", "a.nii", "a.tif"])
def test_a_file_that_claims_more_than_there_is_memory_for_is_not_read(tmp_path, name):
    path = tmp_path / name
    if name == "a.mgz":
        nib.save(nib.MGHImage(HU.astype(np.int32), AFFINE), path)
    elif name == "a.nii":
        save_scan(path, AFFINE, HU)
    else:
        write_itk(path, voxels=np.abs(HU).astype(np.uint16))
    assert_refused(path, "too-large", r"GiB of voxels found, at most .* GiB expected", max_bytes=2000)
    assert copy_of(path, max_bytes=10_000)[1].shape == SHAPE


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
@pytest.mark.parametrize("named", ["missing.raw", "../a.raw", "/etc/hostname"])
def test_a_header_whose_voxels_are_elsewhere_is_refused(tmp_path, suffix, named):
    path = write_itk(tmp_path / f"a{suffix}")
    path.write_bytes(path.read_bytes().replace(b"a.raw", named.encode()))
    assert_refused(path, "voxels-elsewhere", f"voxels in '{named}' found, one file beside the header expected")


# Copies stay ---------------------------------------------------------------------------------------------------------


def test_a_copy_stays_until_its_source_its_voxels_or_the_choices_change(tmp_path):
    path = write_itk(tmp_path / "a.mhd")
    target = tmp_path / "copy.nii.gz"

    def copied(choices=AS_IT_IS):
        before = target.stat().st_mtime_ns if target.exists() else None
        problems = standardise(path, target, choices)
        return target.stat().st_mtime_ns != before, problems

    assert copied() == (True, [])
    first = target.read_bytes()
    assert copied() == (False, [])
    assert copied(Choices(fill=True)) == (True, [])
    assert target.read_bytes() == first
    (tmp_path / "a.raw").write_bytes((HU + np.int16(1)).tobytes(order="F"))
    assert copied(Choices(fill=True))[0]
    assert target.read_bytes() != first


def test_what_was_found_when_a_copy_was_made_is_said_again(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((5, 6), np.uint8)), str(tmp_path / "a.png"))
    first = standardise(tmp_path / "a.png", tmp_path / "copy.nii.gz")
    assert standardise(tmp_path / "a.png", tmp_path / "copy.nii.gz") == first != []


def test_the_same_source_gives_the_same_bytes_wherever_it_lies(tmp_path):
    for name in ("one", "two"):
        write_itk(tmp_path / name / "a.nrrd")
        standardise(tmp_path / name / "a.nrrd", tmp_path / name / "copy.nii.gz")
    assert (tmp_path / "one" / "copy.nii.gz").read_bytes() == (tmp_path / "two" / "copy.nii.gz").read_bytes()


def test_a_mask_of_a_copy_has_its_header(tmp_path):
    image, voxels, _ = copy_of(write_itk(tmp_path / "a.mha"))
    copy = Path(image.get_filename())
    ras, _ = read_ras(copy)
    write_mask(tmp_path / "mask.nii.gz", ras > 500, copy)
    assert (np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj) == (voxels > 500)).all()
    assert header_bytes(tmp_path / "mask.nii.gz") == header_bytes(copy)


def test_a_series_in_its_folder_is_copied_as_a_file_is(tmp_path):
    write_series(tmp_path / "anna")
    assert standardise(tmp_path / "anna", tmp_path / "copy.nii.gz") == []
    assert grid_of(open_image(tmp_path / "copy.nii.gz")).spacing_mm == pytest.approx((0.7, 1.1, 2.5), abs=1e-4)


def test_without_simpleitk_only_files_that_need_it_are_refused(tmp_path, monkeypatch):
    write_itk(tmp_path / "a.nrrd")
    nib.save(nib.MGHImage(HU.astype(np.int32), AFFINE), tmp_path / "b.mgz")
    monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
    with pytest.raises(CohortError, match=r"\.nrrd files found, SimpleITK to read them expected. `pip install"):
        copy_of(tmp_path / "a.nrrd")
    assert copy_of(tmp_path / "b.mgz")[1].shape == SHAPE
