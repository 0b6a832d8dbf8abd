"""Grids and masks: what leaves through `write_mask` lies on the voxels that came in, for every way to store a scan."""

import itertools

import nibabel as nib
import numpy as np
import pytest

from pipeline.errors import ImageError
from pipeline.images import (
    Grid,
    from_ras,
    grid_of,
    open_image,
    ras_grid,
    read_labels_ras,
    read_ras,
    right_angled,
    to_ras,
    write_mask,
)

SHAPE, SPACING = (9, 11, 13), (0.7, 1.0, 2.5)
ORIENTATIONS = [
    (order, flips) for order in itertools.permutations(range(3)) for flips in itertools.product((1, -1), repeat=3)
]
GEOMETRY = ["dim", "pixdim", "qform_code", "sform_code", "xyzt_units", "qoffset_x", "qoffset_y", "qoffset_z"]
GEOMETRY += ["quatern_b", "quatern_c", "quatern_d", "srow_x", "srow_y", "srow_z"]


def oblique_affine(order=(0, 1, 2), flips=(1, 1, 1)):
    """4 x 4 with 8 degrees of tilt; the array's axis i runs along the patient's axis order[i], flipped where -1."""
    angle = np.deg2rad(8)
    tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    turn = np.zeros((3, 3))
    for axis, (target, flip) in enumerate(zip(order, flips, strict=True)):
        turn[target, axis] = flip
    affine = np.eye(4)
    affine[:3, :3] = tilt @ turn @ np.diag(SPACING)
    affine[:3, 3] = (-31.5, 12.25, 7)
    return affine


def save_scan(path, affine, data=None, image_class=nib.Nifti1Image):
    data = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) if data is None else data
    image = image_class(data, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return data


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS)
def test_a_mask_has_its_scans_geometry_byte_for_byte_in_all_48_orientations(tmp_path, order, flips):
    scan, mask = tmp_path / "scan.nii.gz", tmp_path / "mask.nii.gz"
    data = save_scan(scan, oblique_affine(order, flips))
    ras, _ = read_ras(scan)
    write_mask(mask, (ras > 600).astype(np.int32), scan)

    before, after = nib.load(scan), nib.load(mask)
    for field in GEOMETRY:
        assert before.header[field].tobytes() == after.header[field].tobytes(), field
    assert np.array_equal(after.affine, before.affine)
    assert after.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(after.dataobj), data > 600)


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS)
def test_ras_order_and_back_is_the_identity_and_keeps_world_positions(order, flips):
    affine = oblique_affine(order, flips)
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    ras, grid = to_ras(array, affine), ras_grid(Grid(SHAPE, affine))
    assert np.array_equal(from_ras(ras, affine), array)
    assert grid.orientation == "RAS"
    assert grid.shape == ras.shape
    voxel = (2, 3, 5)
    found = np.argwhere(ras == array[voxel])[0]
    assert np.allclose(grid.affine @ [*found, 1], affine @ [*voxel, 1])


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS)
def test_a_scan_lies_where_simpleitk_finds_it_in_all_48_orientations(tmp_path, order, flips):
    sitk = pytest.importorskip("SimpleITK")
    data = save_scan(tmp_path / "scan.nii", oblique_affine(order, flips))
    other = sitk.ReadImage(str(tmp_path / "scan.nii"))
    ras, grid = read_ras(tmp_path / "scan.nii")
    for voxel in itertools.product(*((0, size - 1) for size in SHAPE)):
        found = np.argwhere(ras == data[voxel])[0]
        lps = np.array(other.TransformIndexToPhysicalPoint(voxel))
        assert grid.affine[:3] @ [*found, 1] == pytest.approx(lps * (-1, -1, 1), abs=1e-4)


def test_a_mask_of_a_nifti2_scan_is_nifti2(tmp_path):
    save_scan(tmp_path / "scan.nii", oblique_affine(), image_class=nib.Nifti2Image)
    write_mask(tmp_path / "mask.nii", np.ones(SHAPE, np.int32), tmp_path / "scan.nii")
    assert isinstance(nib.load(tmp_path / "mask.nii"), nib.Nifti2Image)


def test_a_mask_of_a_scaled_scan_holds_plain_integers(tmp_path):
    save_scan(tmp_path / "scan.nii", np.eye(4), np.linspace(-1000, 1000, 9 * 11 * 13).reshape(SHAPE).astype(np.float32))
    image = nib.load(tmp_path / "scan.nii")
    image.header.set_data_dtype(np.int16)  # nibabel now stores a slope and an intercept
    nib.save(image, tmp_path / "scaled.nii")
    write_mask(tmp_path / "mask.nii", np.full(SHAPE, 3), tmp_path / "scaled.nii")
    assert set(np.unique(np.asarray(nib.load(tmp_path / "mask.nii").dataobj))) == {3}


def test_more_than_255_labels_get_a_wider_integer(tmp_path):
    save_scan(tmp_path / "scan.nii", np.eye(4))
    write_mask(tmp_path / "mask.nii", np.full(SHAPE, 300), tmp_path / "scan.nii")
    assert nib.load(tmp_path / "mask.nii").get_data_dtype() == np.uint16


def test_distance_between_grids_is_the_largest_corner_displacement():
    affine = np.diag((*SPACING, 1.0))
    moved = affine.copy()
    moved[2, 2] = 2.6  # 0.1 mm more per slice: 1.2 mm at the twelfth
    assert Grid(SHAPE, affine).distance_mm(Grid(SHAPE, moved)) == pytest.approx(1.2)
    assert Grid(SHAPE, affine).distance_mm(Grid((9, 11, 12), affine)) == np.inf


def test_spacing_of_an_oblique_grid_is_that_of_its_axes():
    assert Grid(SHAPE, oblique_affine()).spacing_mm == pytest.approx(SPACING)


@pytest.mark.parametrize(("shape", "message"), [((4, 4, 4, 2), "three axes expected"), ((4, 4), "three axes expected")])
def test_a_file_without_three_axes_is_refused(tmp_path, shape, message):
    nib.save(nib.Nifti1Image(np.zeros(shape, np.float32), np.eye(4)), tmp_path / "scan.nii")
    with pytest.raises(ImageError, match=message):
        open_image(tmp_path / "scan.nii")


def save_edited(path, edit, affine, data=None, image_class=nib.Nifti1Image):
    """As `save_scan`, with the header's bytes changed afterwards."""
    data = save_scan(path, affine, data, image_class)
    whole = path.read_bytes()
    header = image_class.header_class(whole[: image_class.header_class.sizeof_hdr], check=False)
    edit(header)
    path.write_bytes(header.binaryblock + whole[header.sizeof_hdr :])
    return data


def header_bytes(path):
    """Without the type of the voxels and what belongs to it, which differ between a scan and its mask."""
    header = nib.load(path).header.copy()
    for field in ("datatype", "bitpix", "scl_slope", "scl_inter", "cal_max", "cal_min", "vox_offset"):
        header[field] = 0
    return header.binaryblock


def in_unit(code, factor):
    def edit(header):
        header["xyzt_units"] = code
        for field in ("srow_x", "srow_y", "srow_z", "qoffset_x", "qoffset_y", "qoffset_z"):
            header[field] *= factor
        header["pixdim"][1:4] *= factor

    return edit


@pytest.mark.parametrize("extra", [(1,), (1, 1), (1, 1, 1, 1)])
def test_further_axes_of_one_voxel_are_read_as_none_and_are_there_in_the_mask(tmp_path, extra):
    data = save_scan(tmp_path / "flat.nii", oblique_affine((1, 2, 0), (1, -1, 1)))
    save_scan(tmp_path / "scan.nii", oblique_affine((1, 2, 0), (1, -1, 1)), data.reshape(*SHAPE, *extra))
    ras, grid = read_ras(tmp_path / "scan.nii")
    expected, expected_grid = read_ras(tmp_path / "flat.nii")
    assert np.array_equal(ras, expected)
    assert grid.distance_mm(expected_grid) == 0
    write_mask(tmp_path / "mask.nii", ras > 600, tmp_path / "scan.nii")
    assert header_bytes(tmp_path / "mask.nii") == header_bytes(tmp_path / "scan.nii")
    assert np.array_equal(np.asarray(nib.load(tmp_path / "mask.nii").dataobj), data.reshape(*SHAPE, *extra) > 600)


@pytest.mark.parametrize(("code", "factor"), [(1, 1e-3), (3, 1e3), (0, 1), (10, 1), (3 + 8, 1e3)])
def test_a_scan_in_metres_or_microns_lies_where_its_twin_in_mm_does(tmp_path, code, factor):
    save_scan(tmp_path / "mm.nii", oblique_affine())
    save_edited(tmp_path / "scan.nii", in_unit(code, factor), oblique_affine())
    ras, grid = read_ras(tmp_path / "scan.nii")
    assert grid.distance_mm(read_ras(tmp_path / "mm.nii")[1]) < 1e-4
    assert grid.spacing_mm == pytest.approx(SPACING, rel=1e-5)
    write_mask(tmp_path / "mask.nii", ras > 600, tmp_path / "scan.nii")
    assert header_bytes(tmp_path / "mask.nii") == header_bytes(tmp_path / "scan.nii")


def test_a_sheared_scan_is_read_at_right_angles_and_its_mask_keeps_the_header(tmp_path):
    affine = oblique_affine()
    sheared = affine.copy()
    sheared[:3, 2] += 0.002 * affine[:3, 0] / SPACING[0] * SPACING[2]  # slices lean along the rows: 0.06 mm at the last

    def lean(header):
        for row, field in enumerate(("srow_x", "srow_y", "srow_z")):
            header[field] = sheared[row]

    data = save_edited(tmp_path / "scan.nii", lean, affine)
    ras, grid = read_ras(tmp_path / "scan.nii")
    directions = grid.affine[:3, :3] / grid.spacing_mm
    assert directions.T @ directions == pytest.approx(np.eye(3), abs=1e-9)
    assert 0.01 < grid.distance_mm(Grid(SHAPE, sheared)) < 0.06
    assert np.array_equal(ras, data)
    write_mask(tmp_path / "mask.nii", ras > 600, tmp_path / "scan.nii")
    assert header_bytes(tmp_path / "mask.nii") == header_bytes(tmp_path / "scan.nii")


def test_the_nearest_rotation_of_a_sheared_square_leans_half_way():
    sheared = np.eye(4)
    sheared[0, 1] = np.tan(0.2)
    sheared[:2, 1] /= np.linalg.norm(
        sheared[:2, 1]
    )  # the second axis leans by 0.2 rad: both turn by 0.1 towards each other
    expected = [[np.cos(0.1), np.sin(0.1)], [-np.sin(0.1), np.cos(0.1)]]
    assert right_angled(sheared)[:2, :2] == pytest.approx(np.array(expected))


def test_a_big_endian_scan_is_read_and_its_mask_is_big_endian(tmp_path):
    data = save_scan(tmp_path / "little.nii", oblique_affine((2, 0, 1), (-1, 1, 1)))
    little = nib.load(tmp_path / "little.nii")
    big = nib.Nifti1Image(data, None, little.header.as_byteswapped(">"))
    nib.save(big, tmp_path / "scan.nii")
    ras, grid = read_ras(tmp_path / "scan.nii")
    expected, expected_grid = read_ras(tmp_path / "little.nii")
    assert np.array_equal(ras, expected)
    assert grid.distance_mm(expected_grid) == 0
    write_mask(tmp_path / "mask.nii", ras > 600, tmp_path / "scan.nii")
    assert nib.load(tmp_path / "mask.nii").header.endianness == ">"
    assert header_bytes(tmp_path / "mask.nii") == header_bytes(tmp_path / "scan.nii")
    assert np.array_equal(np.asarray(nib.load(tmp_path / "mask.nii").dataobj), data > 600)


def test_an_affine_that_puts_the_voxels_nowhere_is_refused(tmp_path):
    def lose(header):
        for field in ("srow_x", "srow_y", "srow_z"):
            header[field] = 0

    save_edited(tmp_path / "scan.nii", lose, np.eye(4))
    with pytest.raises(ImageError, match=r"scan\.nii: affine .*, an invertible one expected"):
        read_ras(tmp_path / "scan.nii")


def test_text_and_other_formats_are_refused_by_name(tmp_path):
    (tmp_path / "scan.nii").write_text("hello")
    with pytest.raises(ImageError, match=r"scan\.nii: cannot be read"):
        open_image(tmp_path / "scan.nii")
    nib.save(nib.MGHImage(np.zeros(SHAPE, np.float32), np.eye(4)), tmp_path / "scan.mgz")
    with pytest.raises(ImageError, match="MGHImage found, NIfTI"):
        open_image(tmp_path / "scan.mgz")


def test_a_truncated_scan_is_refused_when_its_voxels_are_read(tmp_path):
    save_scan(tmp_path / "scan.nii", np.eye(4))
    whole = (tmp_path / "scan.nii").read_bytes()
    (tmp_path / "scan.nii").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="voxels cannot be read"):
        read_ras(tmp_path / "scan.nii")


def test_labels_are_rounded_within_a_thousandth_and_refused_beyond(tmp_path):
    save_scan(tmp_path / "near.nii", np.eye(4), np.full(SHAPE, 0.99999, np.float32))
    assert set(np.unique(read_labels_ras(tmp_path / "near.nii")[0])) == {1}
    save_scan(tmp_path / "half.nii", np.eye(4), np.full(SHAPE, 0.5, np.float32))
    with pytest.raises(ImageError, match="from an integer"):
        read_labels_ras(tmp_path / "half.nii")


def test_the_grid_of_a_file_is_its_shape_and_affine(tmp_path):
    save_scan(tmp_path / "scan.nii", oblique_affine())
    grid = grid_of(open_image(tmp_path / "scan.nii"))
    assert grid.shape == SHAPE
    assert np.allclose(grid.affine, oblique_affine(), atol=1e-5)
