"""Grids and masks: what leaves through `write_mask` lies on the voxels that came in, for every way to store a scan."""

import itertools

import nibabel as nib
import numpy as np
import pytest

from pipeline.errors import ImageError
from pipeline.images import Grid, from_ras, grid_of, open_image, ras_grid, read_labels_ras, read_ras, to_ras, write_mask

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
