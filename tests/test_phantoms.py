"""Promises of the demo cohort: reproducible, geometrically awkward, and not solvable by intensity alone."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, obliquity, voxel_sizes
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.phantoms import LABELS, MODALITIES, make_case, write_cohort

NUM_CASES = 18
FOREGROUND = [label for label in LABELS.values() if label > 0]


@pytest.fixture(scope="module", params=MODALITIES)
def cohort(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("demo")
    write_cohort(folder, num_cases=NUM_CASES, modality=request.param)
    return folder


def read_cases(folder: Path) -> list[tuple[Any, Any]]:
    """Image and label map of every training case."""
    training = json.loads((folder / "dataset.json").read_text())["training"]
    return [(nib.load(folder / case["image"]), nib.load(folder / case["label"])) for case in training]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def segmentation_of(label_map: Any) -> NDArray[np.uint8]:
    return np.asarray(label_map.dataobj)


def centroid_mm(segmentation: NDArray[np.uint8], label: int, affine: Any) -> NDArray[np.float64]:
    centre_voxels = np.argwhere(segmentation == label).mean(axis=0)
    return np.asarray(apply_affine(affine, centre_voxels))


@pytest.mark.parametrize("modality", MODALITIES)
def test_same_seed_gives_the_same_bytes_whatever_the_number_of_cases(tmp_path: Path, modality: str) -> None:
    write_cohort(tmp_path / "a", num_cases=3, seed=4, modality=modality)
    write_cohort(tmp_path / "b", num_cases=3, seed=4, modality=modality)
    write_cohort(tmp_path / "c", num_cases=2, seed=4, modality=modality)
    first, second, shorter = (digests(tmp_path / name) for name in "abc")
    assert first == second
    assert all(first[name] == digest for name, digest in shorter.items() if name != "dataset.json")


def test_another_seed_gives_other_cases() -> None:
    first, second = (make_case(0, seed=seed)[0] for seed in (0, 1))
    assert first.shape != second.shape or (first != second).any()


def test_different_cases_differ(cohort: Path) -> None:
    files = digests(cohort)
    assert len(set(files.values())) == len(files) == 2 * NUM_CASES + 1


def test_dataset_json_describes_what_was_written(cohort: Path) -> None:
    description = json.loads((cohort / "dataset.json").read_text())
    assert description["labels"] == {"0": "background", "1": "liver", "2": "kidneys", "3": "spleen"}
    assert description["modality"]["0"] in MODALITIES
    assert description["numTraining"] == len(description["training"]) == NUM_CASES
    assert description["training"][0] == {
        "image": "./imagesTr/phantom_000.nii.gz",
        "label": "./labelsTr/phantom_000.nii.gz",
    }


def test_no_cases_give_an_empty_training_list(tmp_path: Path) -> None:
    write_cohort(tmp_path, num_cases=0)
    assert json.loads((tmp_path / "dataset.json").read_text())["training"] == []


def test_every_organ_is_whole_and_large_enough_to_learn(cohort: Path) -> None:
    for _, label_map in read_cases(cohort):
        segmentation = segmentation_of(label_map)
        through_plane = int(np.argmax(label_map.header.get_zooms()))
        assert np.unique(segmentation).tolist() == [0, *FOREGROUND]
        for label in FOREGROUND:
            components, num_components = ndimage.label(segmentation == label)
            assert num_components == (2 if label == LABELS["kidneys"] else 1)
            for box in ndimage.find_objects(components):
                extent_voxels = [part.stop - part.start for part in box]
                assert extent_voxels.pop(through_plane) >= 4
                assert min(extent_voxels) >= 8


def test_no_organ_is_cut_by_the_field_of_view(cohort: Path) -> None:
    for _, label_map in read_cases(cohort):
        segmentation = segmentation_of(label_map)
        assert segmentation[1:-1, 1:-1, 1:-1].sum() == segmentation.sum()


def test_image_and_label_map_share_one_geometry_in_sform_and_qform(cohort: Path) -> None:
    for image, label_map in read_cases(cohort):
        assert image.shape == label_map.shape
        np.testing.assert_array_equal(image.affine, label_map.affine)
        for file in (image, label_map):
            (sform, sform_code), (qform, qform_code) = file.get_sform(coded=True), file.get_qform(coded=True)
            assert (sform_code, qform_code) == (1, 1)
            np.testing.assert_allclose(sform, qform, atol=1e-4)
            assert file.header.get_xyzt_units()[0] == "mm"


def test_every_case_has_its_own_orientation_spacing_and_tilt(cohort: Path) -> None:
    affines = [image.affine for image, _ in read_cases(cohort)]
    orientations = [nib.aff2axcodes(affine) for affine in affines]
    assert len(set(orientations)) == NUM_CASES
    for axis in range(3):
        assert {codes[axis] for codes in orientations} == set("LRPAIS")
    spacings_mm = np.sort([voxel_sizes(affine) for affine in affines], axis=1)
    assert (spacings_mm[:, 0] >= 1.6 - 1e-3).all() and (spacings_mm[:, 1] <= 2.2 + 1e-3).all()
    assert (spacings_mm[:, 2] >= 3.5 - 1e-3).all() and (spacings_mm[:, 2] <= 5.0 + 1e-3).all()
    assert len(np.unique(spacings_mm[:, 2])) == NUM_CASES
    assert np.mean([obliquity(affine).max() > np.deg2rad(2) for affine in affines]) > 0.5


def test_48_cases_hold_all_48_orientations() -> None:
    orientations = {nib.aff2axcodes(make_case(index, size=0.2)[2]) for index in range(48)}
    assert len(orientations) == 48


def test_the_affine_puts_the_liver_right_the_spleen_left_and_the_kidneys_below(cohort: Path) -> None:
    for _, label_map in read_cases(cohort):
        segmentation, affine = segmentation_of(label_map), label_map.affine
        liver, kidneys, spleen = (centroid_mm(segmentation, label, affine) for label in FOREGROUND)
        assert liver[0] > 10 and spleen[0] < -10
        assert abs(kidneys[0]) < 7 and kidneys[2] < -10


def test_reading_with_a_flipped_axis_puts_the_liver_where_the_spleen_is(cohort: Path) -> None:
    for _, label_map in read_cases(cohort):
        segmentation, affine = segmentation_of(label_map), label_map.affine
        left_to_right = int(np.flatnonzero(nib.io_orientation(affine)[:, 0] == 0)[0])
        flipped = np.flip(segmentation, left_to_right)
        wrong = centroid_mm(flipped, LABELS["liver"], affine)
        liver, spleen = (centroid_mm(segmentation, LABELS[name], affine) for name in ("liver", "spleen"))
        assert wrong[0] < -10
        assert np.linalg.norm(wrong - spleen) < np.linalg.norm(wrong - liver)


def test_ignoring_the_affine_puts_the_liver_on_the_wrong_side_in_many_cases(cohort: Path) -> None:
    is_right = []
    for _, label_map in read_cases(cohort):
        segmentation = segmentation_of(label_map)
        index = np.argwhere(segmentation == LABELS["liver"]).mean(axis=0)
        is_right.append(index[0] > (segmentation.shape[0] - 1) / 2 + 3)
    assert np.mean(is_right) < 0.75


def test_neither_intensity_nor_volume_tells_liver_from_spleen(cohort: Path) -> None:
    is_brighter, is_larger = [], []
    for image, label_map in read_cases(cohort):
        liver, spleen = (image.get_fdata()[segmentation_of(label_map) == label] for label in (1, 3))
        is_brighter.append(liver.mean() > spleen.mean())
        is_larger.append(liver.size > spleen.size)
    assert 0.2 < np.mean(is_brighter) < 0.8
    assert 0.2 < np.mean(is_larger) < 0.8


def test_the_best_intensity_classifier_fails_as_a_broken_pipeline_would(cohort: Path) -> None:
    """Bayes on the histogram of the very voxels it is scored on: an upper bound for every threshold."""
    cases = [(image.get_fdata(), segmentation_of(label_map)) for image, label_map in read_cases(cohort)]
    # MRI has a scale per case: the classifier is even told the mean of the organs. CT keeps its HU.
    is_ct = cases[0][0].min() < 0
    scaled = [i / 5 + 205 if is_ct else 100 * i / i[reference > 0].mean() for i, reference in cases]
    binned = [np.clip(image, 0, 399).astype(int) for image in scaled]
    counts = np.zeros((400, len(LABELS)))
    for bins, (_, segmentation) in zip(binned, cases, strict=True):
        np.add.at(counts, (bins.ravel(), segmentation.ravel()), 1)
    dsc = []
    for bins, (_, reference) in zip(binned, cases, strict=True):
        prediction = counts.argmax(axis=1)[bins]
        for label in FOREGROUND:
            mask, truth = prediction == label, reference == label
            dsc.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
    assert np.mean(dsc) < 0.7


def test_ct_is_int16_hu_with_air_outside_and_organs_that_stand_out_of_the_noise() -> None:
    image, segmentation, _ = make_case(0, modality="CT")
    assert image.dtype == np.int16
    assert abs(np.mean(image[image < -500]) + 1000) < 10
    liver = np.asarray(image[segmentation == LABELS["liver"]], dtype=float)
    assert 3 < (liver.mean() - 40) / liver.std() < 6


def test_mri_is_float32_without_negative_values_and_with_a_scale_of_its_own() -> None:
    means = []
    for index in range(6):
        image, segmentation, _ = make_case(index, modality="MRI")
        assert image.dtype == np.float32 and np.min(image) >= 0
        means.append(np.mean(image[segmentation > 0]))
    assert max(means) > 3 * min(means)


def test_size_multiplies_the_voxels_along_each_axis_of_the_same_patient() -> None:
    _, small, small_affine = make_case(2)
    _, large, large_affine = make_case(2, size=2)
    np.testing.assert_allclose(large.shape, 2 * np.array(small.shape), atol=1)
    for label in FOREGROUND:
        centres = centroid_mm(small, label, small_affine), centroid_mm(large, label, large_affine)
        np.testing.assert_allclose(*centres, atol=0.5)


def test_unknown_modality_and_impossible_size_are_refused() -> None:
    with pytest.raises(ValueError, match="modality: expected one of CT, MRI, got 'PET'"):
        make_case(0, modality="PET")
    with pytest.raises(ValueError, match="size: expected a factor above 0, got 0"):
        make_case(0, size=0)


def test_phantoms_do_not_import_torch() -> None:
    program = "import sys, pipeline.phantoms; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[1]).returncode == 0
