"""Preparing a scan and restoring a prediction are inverse in geometry; names of axes never get mixed up."""

import dataclasses
import inspect
import re

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from pipeline import preprocess
from pipeline.errors import ImageError
from pipeline.intensity import describe
from pipeline.plan import Plan
from pipeline.preprocess import (
    foreground_locations,
    load_image,
    load_placement,
    prepare,
    preprocess_case,
    read_channels,
    save_prepared,
)
from pipeline.records import Case
from pipeline.restore import Prediction, restore_labels

SHAPE, SPACING = (18, 22, 13), (0.7, 1.0, 2.5)


def make_plan(**changes):
    plan = Plan(
        configuration="3d_fullres",
        left_out=None,
        dims=3,
        network="unet",
        task="segmentation",
        preset="M",
        encoder="",
        is_padded=False,
        dropout=0.0,
        axes="zyx",
        spacing_mm=(2.5, 1.0, 0.7),
        median_shape=(13, 22, 18),
        patch_size=(16, 24, 16),
        batch_size=2,
        is_batch_dice=changes.get("dims") == 2,
        memory_estimate_gib=1.0,
        memory_measured_gib=None,
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        labels=(0, 2, 5),
        regions=(),
        ignore_label=None,
        target_scale=1.0,
        channels=("MRI",),
        normalisation=("zscore",),
        foreground_intensity=(describe(np.empty(0)),),
        widths=(),
        reasons={},
    )
    return dataclasses.replace(plan, **changes)


def labelled_scan():
    """(1, I, J, K) and (I, J, K): a block of label 5 that touches the border, a smaller one of label 2."""
    labels = np.zeros(SHAPE, np.int32)
    labels[2:12, 3:17, 0:7] = 5
    labels[10:16, 6:19, 7:11] = 2
    image = labels[None].astype(np.float32) * 100 + 50 + np.random.default_rng(0).normal(size=(1, *SHAPE)).astype("f4")
    return image, labels


def restored_labels(probabilities, prepared, plan):
    return restore_labels([Prediction([probabilities], probabilities.shape[1:], prepared.placement)], plan)


def one_hot(classes, num_classes=3):
    return np.stack([(classes == index).astype(np.float32) for index in range(num_classes)])


@pytest.mark.parametrize("axes", ["zyx", "xzy", "yxz"])
def test_restoring_prepared_labels_at_their_own_spacing_gives_them_back(axes):
    image, labels = labelled_scan()
    spacing = tuple(SPACING["xyz".index(axis)] for axis in axes)
    plan = make_plan(axes=axes, spacing_mm=spacing)
    prepared = prepare(image, SPACING, plan, labels)
    assert prepared.image.shape[1:] == tuple(SHAPE["xyz".index(axis)] for axis in axes)
    restored = restored_labels(one_hot(prepared.classes), prepared, plan)
    assert np.array_equal(restored, labels)


def test_restoring_from_another_spacing_keeps_nearly_every_voxel_and_every_centre():
    image, labels = labelled_scan()
    plan = make_plan(spacing_mm=(2.0, 0.9, 0.9))
    prepared = prepare(image, SPACING, plan, labels)
    restored = restored_labels(one_hot(prepared.classes), prepared, plan)
    assert (restored == labels).mean() > 0.97
    for label in (2, 5):
        before, after = (ndimage.center_of_mass(mask == label) for mask in (labels, restored))
        assert np.abs(np.subtract(before, after)).max() < 0.9 / 0.7 / 2, "half a voxel of the prepared grid"


def test_a_2d_plan_leaves_the_slices_as_they_are():
    image, labels = labelled_scan()
    prepared = prepare(image, SPACING, make_plan(dims=2, spacing_mm=(None, 2.0, 2.0)), labels)
    assert prepared.image.shape == (1, 13, 11, 6)


def test_zeros_around_the_patient_are_cropped_and_come_back_as_background():
    image, labels = labelled_scan()
    inside = (slice(2, 17), slice(3, 20), slice(0, 12))
    cropped = np.zeros_like(image)
    cropped[(0, *inside)] = image[(0, *inside)]
    prepared = prepare(cropped, SPACING, make_plan(), labels)
    assert prepared.image.shape == (1, 12, 17, 15)
    only_spleen = np.zeros((3, 12, 17, 15), np.float32)
    only_spleen[2] = 1
    whole = restored_labels(only_spleen, prepared, make_plan())
    assert whole.shape == SHAPE
    assert (whole[inside] == 5).all()
    assert (whole == 5).sum() == 12 * 17 * 15


def test_outside_of_the_crop_no_region_is_found():
    image, labels = labelled_scan()
    image[:, :2] = 0
    prepared = prepare(image, SPACING, make_plan(), labels)
    everywhere = np.ones((2, *prepared.image.shape[1:]), np.float32)
    whole = restored_labels(everywhere, prepared, make_plan(regions=((2, 5), (5,))))
    assert not whole[:2].any()
    assert (whole[2:] == 5).all()


def test_labels_become_indices_into_the_plans_labels():
    image, labels = labelled_scan()
    prepared = prepare(image, SPACING, make_plan(), labels)
    assert set(np.unique(prepared.classes)) == {0, 1, 2}
    assert (prepared.classes == 2).sum() == (labels == 5).sum()


@pytest.mark.parametrize("ignored", [1, 3, 9])
def test_the_ignore_label_becomes_the_index_after_the_last_and_is_never_a_foreground_location(tmp_path, ignored):
    image, labels = labelled_scan()
    labels[:4] = ignored
    plan = make_plan(ignore_label=ignored)
    prepared = prepare(image, SPACING, plan, labels)
    assert prepared.classes.shape == labels.transpose(2, 1, 0).shape
    assert np.array_equal(prepared.classes == 3, labels.transpose(2, 1, 0) == ignored)
    assert np.array_equal(prepared.classes == 2, labels.transpose(2, 1, 0) == 5)
    save_prepared(prepared, tmp_path, plan)
    assert set(np.load(tmp_path / "locations.npy")[:, 0]) == {1, 2}
    assert np.array_equal(np.load(tmp_path / "classes.npy"), prepared.classes)


def test_foreground_locations_name_voxels_of_their_class_and_none_without_foreground():
    _, labels = labelled_scan()
    locations = foreground_locations(labels.astype(np.uint16))
    assert all(labels[tuple(voxel)] == label for label, *voxel in locations)
    assert foreground_locations(np.zeros(SHAPE, np.uint16)).shape == (0, 4)


def save_case(folder, channels, labels=None):
    affine = np.diag((*SPACING, 1.0))
    paths, label = [], None
    if labels is not None:
        label = folder / "label.nii.gz"
        nib.save(nib.Nifti1Image(labels.astype(np.uint8), affine), label)
    for index, array in enumerate(channels):
        paths.append(folder / f"scan_{index}.nii.gz")
        nib.save(nib.Nifti1Image(array.astype(np.float32), affine), paths[-1])
    return Case("a", "a", 0, label, tuple(paths))


def prepared_again(case, folder, **changes):
    """Whether the arrays were made, rather than kept."""
    code = changes.pop("code", "")
    previous = changes.pop("mask", None)
    return preprocess_case(case, folder, previous, plan=make_plan(**changes), code=code)[1]


def test_arrays_are_kept_until_the_scan_the_rules_or_the_program_changed(tmp_path):
    image, labels = labelled_scan()
    case, folder = save_case(tmp_path, image, labels), tmp_path / "arrays"
    assert prepared_again(case, folder)
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert not prepared_again(case, folder, batch_size=7, reasons={"batch_size": "another"}), "decides nothing here"
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    assert prepared_again(case, folder, spacing_mm=(2.5, 2.0, 2.0))
    assert prepared_again(case, folder, code="of another version")
    assert prepared_again(case, folder)


@pytest.mark.parametrize("role", ["image", "label"])
def test_arrays_are_made_again_after_the_file_changed(tmp_path, role):
    image, labels = labelled_scan()
    case, folder = save_case(tmp_path, image, labels), tmp_path / "arrays"
    before, _ = preprocess_case(case, folder, plan=make_plan())
    save_case(tmp_path, image + 1 * (role == "image") * (image > 300), labels * (role == "image"))
    after, is_new = preprocess_case(case, folder, plan=make_plan())
    assert is_new
    assert before.keys() == after.keys()
    assert before != after


def test_arrays_that_are_damaged_or_gone_are_made_again(tmp_path):
    image, labels = labelled_scan()
    case, folder = save_case(tmp_path, image, labels), tmp_path / "arrays"
    whole, _ = preprocess_case(case, folder, plan=make_plan())
    (folder / "image.npy").write_bytes(b"half")
    assert preprocess_case(case, folder, plan=make_plan()) == (whole, True)
    (folder / "locations.npy").unlink()
    assert preprocess_case(case, folder, plan=make_plan()) == (whole, True)
    (folder / "made_of.json").write_bytes(b"\0" * 100)
    assert preprocess_case(case, folder, plan=make_plan()) == (whole, True)


def test_intensities_of_the_cohort_matter_only_to_ct(tmp_path):
    case, other = save_case(tmp_path, labelled_scan()[0]), (describe(np.arange(9)),)
    assert prepared_again(case, tmp_path / "arrays")
    assert not prepared_again(case, tmp_path / "arrays", foreground_intensity=other)
    assert prepared_again(case, tmp_path / "arrays", normalisation=("ct",))
    assert prepared_again(case, tmp_path / "arrays", normalisation=("ct",), foreground_intensity=other)


def test_a_field_of_a_plan_that_prepare_reads_is_among_the_rules_that_arrays_are_kept_by():
    read = set(re.findall(r"\bplan\.(\w+)", inspect.getsource(preprocess)))
    fields = {field.name for field in dataclasses.fields(Plan)}
    assert (read & fields) - {"configuration", "foreground_intensity"} <= set(preprocess.RULES)


def test_a_spline_of_lower_order_is_used_where_the_plan_says_so():
    image, _ = labelled_scan()
    cubic, linear = (prepare(image, SPACING, make_plan(spacing_mm=(2.0, 0.9, 0.9), image_order=n)) for n in (3, 1))
    assert linear.image.max() < cubic.image.max(), "a line does not overshoot"


def test_arrays_on_disk_are_what_was_prepared(tmp_path):
    image, _ = labelled_scan()
    case = save_case(tmp_path, image)
    preprocess_case(case, tmp_path / "arrays", plan=make_plan())
    prepared = prepare(*read_channels(case), make_plan())
    assert np.array_equal(load_image(tmp_path / "arrays"), prepared.image)
    assert load_placement(tmp_path / "arrays") == prepared.placement


def test_channels_on_different_grids_are_refused(tmp_path):
    case = save_case(tmp_path, [np.ones(SHAPE), np.ones((4, 4, 4))])
    with pytest.raises(ImageError, match=r"scan_1.nii.gz has shape \(4, 4, 4\), reference .*scan_0.nii.gz"):
        read_channels(case)
    moved = np.diag((*SPACING, 1.0))
    moved[0, 3] = 5
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.float32), moved), case.channels[1])
    with pytest.raises(ImageError, match=r"scan_1.nii.gz lies 5 mm off reference .*scan_0.nii.gz"):
        read_channels(case)
