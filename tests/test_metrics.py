"""Measures against vectors computed by others, hand-computed voxels, and laws."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline import metrics
from pipeline.metrics import surfaces
from pipeline.metrics.areas import areas_mm2
from pipeline.metrics.arrays import make_pair
from pipeline.metrics.nearest import nearest_mm
from tests.random_pairs import COLUMNS, TABLE, TOLERANCE_MM, random_pairs

Mask = NDArray[np.bool_]
ODD_SHAPE, ODD_SPACING_MM = (9, 11, 13), (0.7, 1.0, 2.5)


def box(shape: tuple[int, ...], *slices: slice | int) -> Mask:
    mask = np.zeros(shape, dtype=bool)
    mask[slices] = True
    return mask


def ball(radius2_voxels: int) -> Mask:
    i, j, k = np.ogrid[:64, :64, :64]
    return (i - 32) ** 2 + (j - 32) ** 2 + (k - 32) ** 2 <= radius2_voxels


def measure_one(
    reference: NDArray[np.generic],
    prediction: NDArray[np.generic],
    spacing_mm: tuple[float, ...] = (1, 1, 1),
    tolerance_mm: float = 1,
) -> metrics.LabelMeasures:
    both = reference.astype(np.uint8), prediction.astype(np.uint8)
    options = {"labels": [1], "spacing_mm": spacing_mm, "tolerance_mm": tolerance_mm, "has_voxel_edges": True}
    return metrics.measure(*both, **options)[0]


def distances_of(reference: Mask, prediction: Mask, spacing_mm: tuple[float, ...]) -> surfaces.SurfaceDistances:
    pair = make_pair(reference, prediction, [1], spacing_mm)
    return surfaces.surface_distances(*surfaces.borders(pair), 1, pair.spacing_mm)


def cube(low: int, high: int) -> tuple[slice, slice, slice]:
    return slice(low, high), slice(low, high), slice(low, high)


S16, MID = (16, 16, 16), slice(4, 9)
F32_SPACING_MM = (float(np.float32(0.8)), float(np.float32(0.8)), 2.5)
# Source: vectors that the project measured with MONAI and surface-distance (surface elements).
# id: reference, prediction, spacing, tolerance, dsc, hd, hd95, nsd, and of voxel edges hd95, hd95 pooled and nsd
VECTORS = {
    "V1 one voxel against another": (
        *(box((10, 10, 10), 5, 6, 7), box((10, 10, 10), 5, 6, 9), (3, 2, 1), 1),
        *(0, 2, 2, 0.5, 2, 2, 0),
    ),
    "V2 half images, a slice apart": (
        *(box((100,) * 3, slice(0, 50)), box((100,) * 3, slice(0, 51)), (2, 1, 1), 1),
        *(0.990099, 2, 2, 0.836145, 2, 2, 0.754935),
    ),
    "V3 shifted along K": (
        *(box(S16, MID, MID, MID), box(S16, MID, MID, slice(5, 10)), (1, 1, 2.5), 1),
        *(0.8, 2.5, 2.5, 0.837561, 2.5, 2.5, 0.734694),
    ),
    "V3 shifted along K, tolerated": (
        *(box(S16, MID, MID, MID), box(S16, MID, MID, slice(5, 10)), (1, 1, 2.5), 2.5),
        *(0.8, 2.5, 2.5, 1, 2.5, 2.5, 1),
    ),
    "V4 an island": (
        *(box((40,) * 3, *cube(5, 15)), box((40,) * 3, *cube(5, 15)) | box((40,) * 3, *cube(30, 33))),
        *((1, 1, 1), 1, 0.986680, 31.176915, 27.748874, 0.963530, 9.699485, 0, 0.974052),
    ),
    "V5 touching the edge of the image": (
        *(box(S16, slice(0, 4), MID, MID), box(S16, slice(0, 5), MID, MID), (1, 1, 1), 1),
        *(0.888889, 1, 1, 1, 1, 1, 1),
    ),
    "V6 two dimensions": (
        *(box((16, 16, 1), MID, MID), box((16, 16, 1), MID, slice(5, 10)), (1, 1, 5), 1),
        *(0.8, 1, 1, 1, 1, 1, 1),
    ),
    "V7 cube in a cube": (
        *(box((20,) * 3, *cube(6, 14)), box((20,) * 3, *cube(4, 16)), (1, 1, 1), 2),
        *(0.457143, 3.464102, 2.828427, 0.715125, 2.828427, 2.828427, 0.664062),
    ),
    "V8 ball in a ball": (
        *(ball(400), ball(324), (1, 1, 1), 2),
        *(0.844376, 2.449490, 2.236068, 0.914973, 2.236068, 2.236068, 0.7),
    ),
    "V9 float32 spacing": (
        *(box(S16, MID, MID, MID), box(S16, slice(5, 10), MID, MID), F32_SPACING_MM, 0.8),
        *(0.8, F32_SPACING_MM[0], F32_SPACING_MM[0], 1, F32_SPACING_MM[0], F32_SPACING_MM[0], 1),
    ),
}


@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS.keys())
def test_measures_agree_with_independent_implementations(vector):
    reference, prediction, spacing_mm, tolerance_mm, *expected = vector
    found = measure_one(reference, prediction, spacing_mm, tolerance_mm)
    numbers = [found.dsc, found.hd_mm, found.hd95_mm, found.nsd]
    numbers += [found.hd95_voxel_mm, found.hd95_voxel_pooled_mm, found.nsd_voxel]
    assert numbers == pytest.approx(expected, abs=1e-6)


def test_200_random_pairs_have_the_numbers_of_surface_distance():
    kept = np.loadtxt(TABLE, skiprows=1)
    assert kept.shape == (200, len(COLUMNS))
    for pair, (number, *expected) in zip(random_pairs(), kept, strict=True):
        found = measure_one(*pair, TOLERANCE_MM)
        assert [found.nsd, found.hd95_mm, found.hd_mm, found.assd_mm] == pytest.approx(expected, abs=1e-5), number


def test_200_random_pairs_have_the_numbers_of_monai_by_voxel_edges():
    import torch
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, compute_surface_dice

    for reference, prediction, spacing_mm in random_pairs():
        images = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference)]
        shared = {"include_background": True, "spacing": spacing_mm}
        expected = [
            compute_dice(*images),
            compute_iou(*images),
            compute_hausdorff_distance(*images, percentile=95, **shared),
            compute_surface_dice(*images, [TOLERANCE_MM], **shared),
        ]
        found = measure_one(reference, prediction, spacing_mm, TOLERANCE_MM)
        numbers = [found.dsc, found.iou, found.hd95_voxel_mm, found.nsd_voxel]
        assert numbers == pytest.approx([float(one) for one in expected], abs=1e-4)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), ODD_SPACING_MM, (0.5, 0.5, 10.0)])
@pytest.mark.parametrize("num_points", [3, 400, 3000])
def test_the_nearest_of_many_places_is_nearest_however_far(spacing_mm, num_points):
    """Few and many points, close and far ones, against all distances."""
    rng = np.random.default_rng(num_points)
    points, others = rng.integers(0, 30, (3, num_points)), rng.integers(0, 9, (3, 40))
    steps_mm = (points[:, :, np.newaxis] - others[:, np.newaxis]) * np.reshape(spacing_mm, (3, 1, 1))
    assert nearest_mm(points, others, spacing_mm) == pytest.approx(np.linalg.norm(steps_mm, axis=0).min(axis=1))


def test_nothing_is_near_where_there_is_nothing():
    points, none = np.zeros((3, 2), int), np.zeros((3, 0), int)
    assert nearest_mm(points, none, ODD_SPACING_MM).tolist() == [math.inf, math.inf]
    assert nearest_mm(none, points, ODD_SPACING_MM).tolist() == []


# A single voxel is an octahedron: 8 corners, each with a triangle of equal area. Neighbours share 4 corners;
# the other 4 of each are one step away.
@pytest.mark.parametrize(("axis", "step_mm"), [(0, 0.7), (1, 1.0), (2, 2.5)])
def test_neighbouring_voxels_are_one_step_of_their_own_axis_apart(axis, step_mm):
    shifted = [5, 5, 5]
    shifted[axis] += 1
    found = measure_one(box(ODD_SHAPE, 5, 5, 5), box(ODD_SHAPE, *shifted), ODD_SPACING_MM, step_mm / 2)
    assert found == metrics.LabelMeasures(
        label=1,
        status="ok",
        reference_ml=pytest.approx(0.00175),
        prediction_ml=pytest.approx(0.00175),
        volume_difference_ml=0,
        volume_difference_relative=0,
        dsc=0,
        iou=0,
        sensitivity=0,
        precision=0,
        nsd=pytest.approx(0.5),
        hd95_mm=pytest.approx(step_mm),
        hd_mm=pytest.approx(step_mm),
        assd_mm=pytest.approx(step_mm / 2),
        nsd_voxel=0,
        hd95_voxel_mm=pytest.approx(step_mm),
        hd95_voxel_pooled_mm=pytest.approx(step_mm),
    )


def test_distance_of_diagonal_voxels_mixes_the_axes():
    found = measure_one(box((9, 9, 9), 2, 2, 2), box((9, 9, 9), 5, 2, 6), (3, 9, 1))
    assert found.hd_mm == pytest.approx(math.hypot(9, 4))
    # Corner pairs (i, k) lie 6 or 9 and 3 or 4 mm from the nearest of the other voxel's.
    assert found.assd_mm == pytest.approx(np.mean([math.hypot(i, k) for i in (6, 9) for k in (3, 4)]))


def test_area_of_a_single_voxel_is_eight_corner_triangles():
    voxel = box(ODD_SHAPE, 3, 3, 3)
    distances = distances_of(voxel, voxel, (3, 2, 1))
    # A triangle's three points lie half a spacing from the voxel's centre, one along each axis.
    triangle_mm2 = np.linalg.norm(np.cross((-1.5, 1, 0), (-1.5, 0, 0.5))) / 2
    assert distances.areas_mm2 == pytest.approx(np.full(16, triangle_mm2))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_area_of_a_flat_wall_is_the_area_of_its_faces(axis):
    wall = np.indices((2, 2, 2))[axis] == 0
    area_mm2 = areas_mm2(ODD_SPACING_MM)[np.packbits(wall)[0]]
    assert area_mm2 == pytest.approx(math.prod(ODD_SPACING_MM) / ODD_SPACING_MM[axis])


# One set of voxels for each shape up to turning, mirroring and inversion, and its area at 1 mm: marching
# cubes, triangles between the middles of the box's edges.
ISOTROPIC_AREAS = {
    "corner": ([(0, 0, 0)], math.sqrt(3) / 8),
    "edge": ([(0, 0, 0), (0, 0, 1)], math.sqrt(2) / 2),
    "face diagonal": ([(0, 0, 0), (0, 1, 1)], math.sqrt(3) / 4),
    "space diagonal": ([(0, 0, 0), (1, 1, 1)], math.sqrt(3) / 4),
    "L": ([(0, 0, 0), (0, 0, 1), (0, 1, 0)], 1 / 2 + math.sqrt(3) * 3 / 8),
    "edge and corner": ([(0, 0, 0), (0, 0, 1), (1, 1, 1)], math.sqrt(2) / 2 + math.sqrt(3) / 8),
    "three corners": ([(0, 0, 0), (0, 1, 1), (1, 0, 1)], math.sqrt(3) * 3 / 8),
    "square": ([(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)], 1),
    "star": ([(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)], math.sqrt(3) * 3 / 4),
    "path": ([(0, 0, 0), (0, 0, 1), (0, 1, 1), (1, 1, 1)], math.sqrt(3) / 2 + math.sqrt(2) / 2),
    "L and corner": ([(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 1, 1)], 1 / 2 + math.sqrt(3) / 2),
    "two edges": ([(0, 0, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1)], math.sqrt(2)),
    "four corners": ([(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)], math.sqrt(3) / 2),
}


def test_all_256_neighbourhoods_have_the_area_of_their_shape_however_turned():
    found_mm2 = areas_mm2((1.0, 1.0, 1.0))
    seen = {0: 0.0, 255: 0.0}
    for voxels, area_mm2 in ISOTROPIC_AREAS.values():
        around = np.zeros((2, 2, 2), dtype=np.uint8)
        around[tuple(np.transpose(voxels))] = 1
        turns = itertools.product(itertools.permutations(range(3)), *[(1, -1)] * 3)
        for axes, i, j, k in turns:
            turned = around.transpose(axes)[::i, ::j, ::k]
            code = int(np.packbits(turned)[0])
            seen |= {code: area_mm2, 255 - code: area_mm2}
    assert len(seen) == 256
    assert found_mm2 == pytest.approx([seen[code] for code in range(256)])


def test_areas_follow_their_axes_when_spacing_is_turned():
    spacing_mm = np.array(ODD_SPACING_MM)
    for axes in itertools.permutations(range(3)):
        turned_mm2 = areas_mm2(tuple(spacing_mm[list(axes)]))
        for code in range(256):
            around = np.unpackbits(np.uint8(code)).reshape(2, 2, 2)
            turned_code = np.packbits(around.transpose(axes))[0]
            assert turned_mm2[turned_code] == pytest.approx(areas_mm2(ODD_SPACING_MM)[code])


def test_path_of_four_voxels_has_a_slanted_hexagon_and_two_flaps():
    # Moves along I, then J, then K at spacing (3, 2, 1), faces (2, 3, 6) mm2: two triangles across the
    # hexagon with normals (1, 1, 1) / 8 and (3, 3, 3) / 8, and flaps without I and without K, the end moves.
    around = np.zeros((2, 2, 2), dtype=np.uint8)
    around[(0, 1, 1, 1), (0, 0, 1, 1), (0, 0, 0, 1)] = 1
    area_mm2 = areas_mm2((3.0, 2.0, 1.0))[np.packbits(around)[0]]
    assert area_mm2 == pytest.approx(math.hypot(2, 3, 6) / 2 + math.hypot(3, 6) / 4 + math.hypot(2, 3) / 4)


def test_contour_of_one_slice_does_not_depend_on_its_thickness_or_axis():
    reference, prediction = (
        box((16, 16), slice(2, 12), slice(2, 12)),
        box((16, 16), slice(2, 12), slice(2, 13)),
    )
    found = []
    for axis, thickness_mm in itertools.product(range(3), (0.1, 10.0)):
        spacing_mm = np.insert([1.0, 2.0], axis, thickness_mm)
        images = np.expand_dims(reference, axis), np.expand_dims(prediction, axis)
        found.append(numbers(measure_one(*images, tuple(spacing_mm))))
    assert found == [pytest.approx(found[0])] * 6
    assert found[0][4:6] == [2, 2]


OVERLAPS = ("dsc", "iou", "sensitivity", "precision", "nsd", "nsd_voxel")
DISTANCES = ("hd95_mm", "hd_mm", "assd_mm", "hd95_voxel_mm", "hd95_voxel_pooled_mm")


def values(one: metrics.LabelMeasures, names: tuple[str, ...]) -> list[float | None]:
    return [getattr(one, name) for name in names]


def test_missed_label_scores_zero_and_infinity():
    found = measure_one(box(ODD_SHAPE, 3, 3, 3), np.zeros(ODD_SHAPE), (10, 10, 10))
    assert (found.status, found.reference_ml, found.prediction_ml, found.volume_difference_ml) == ("missed", 1, 0, -1)
    assert found.volume_difference_relative == -1
    assert values(found, OVERLAPS) == [0] * 6 and values(found, DISTANCES) == [math.inf] * 5


def test_false_positive_label_scores_zero_and_infinity():
    found = measure_one(np.zeros(ODD_SHAPE), box(ODD_SHAPE, 3, 3, 3), (10, 10, 10))
    assert (found.status, found.reference_ml, found.volume_difference_ml) == ("false_positive", 0, 1)
    assert found.volume_difference_relative is None
    assert values(found, OVERLAPS) == [0] * 6 and values(found, DISTANCES) == [math.inf] * 5


def test_label_in_neither_mask_has_no_values():
    found = measure_one(np.zeros(ODD_SHAPE), np.zeros(ODD_SHAPE))
    assert (found.status, found.reference_ml, found.volume_difference_relative) == ("absent_ok", 0, None)
    assert values(found, (*OVERLAPS, *DISTANCES)) == [None] * 11


def test_overlaps_share_what_they_say():
    """Of 8 voxels 6 are found, and 2 invented."""
    reference, prediction = box(ODD_SHAPE, 1, 1, slice(0, 8)), box(ODD_SHAPE, 1, 1, slice(2, 10))
    found = measure_one(reference, prediction | box(ODD_SHAPE, 5, 5, slice(0, 4)))
    assert values(found, OVERLAPS[:4]) == pytest.approx([12 / 20, 6 / 14, 6 / 8, 6 / 12])
    assert found.volume_difference_relative == pytest.approx(0.5)


def test_voxel_edges_are_measured_only_if_asked_for():
    one = metrics.measure(ZEROS + 1, ZEROS + 1, labels=[1], spacing_mm=(1, 1, 1), tolerance_mm=1)[0]
    assert (one.nsd, one.nsd_voxel, one.hd95_voxel_mm, one.hd95_voxel_pooled_mm) == (1, None, None, None)


def test_one_voxel_image_has_a_surface():
    found = measure_one(np.ones((1, 1, 1)), np.ones((1, 1, 1)))
    assert (found.dsc, found.nsd, found.hd_mm) == (1, 1, 0)


def several_labels() -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    reference, prediction = np.zeros(ODD_SHAPE, np.uint16), np.zeros(ODD_SHAPE, np.uint16)
    reference[:4], prediction[:5] = 2, 2
    reference[5:8, 3:9, 3:9], prediction[5:8, 4:9, 3:9] = 300, 300
    reference[8, 0, 0], prediction[8, -1, -1] = 7, 9999
    return reference, prediction


def test_each_label_is_measured_as_if_alone_in_the_order_asked():
    reference, prediction = several_labels()
    labels = [300, 7, 2, 4]
    found = metrics.measure(reference, prediction, labels=labels, spacing_mm=ODD_SPACING_MM, tolerance_mm=0.5)
    alone = [measure_one(reference == n, prediction == n, ODD_SPACING_MM, 0.5) for n in labels]
    alone = [dataclasses.replace(one, nsd_voxel=None, hd95_voxel_mm=None, hd95_voxel_pooled_mm=None) for one in alone]
    assert found == [dataclasses.replace(one, label=n) for one, n in zip(alone, labels, strict=True)]
    assert [one.status for one in found] == ["ok", "missed", "ok", "absent_ok"]


@pytest.mark.parametrize("dtype", [np.int16, np.int64, np.uint64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_measures_do_not_depend_on_dtype_or_memory_order(dtype, order):
    reference, prediction = several_labels()
    options = {"labels": [2, 300], "spacing_mm": ODD_SPACING_MM, "tolerance_mm": 0.5}
    stored = (np.asarray(array, dtype=dtype, order=order) for array in (reference, prediction))
    assert metrics.measure(*stored, **options) == metrics.measure(reference, prediction, **options)
    mixed = reference.astype(np.uint64), prediction.astype(dtype)
    assert metrics.measure(*mixed, **options) == metrics.measure(reference, prediction, **options)


def test_negative_voxels_are_background():
    reference = np.where(box(ODD_SHAPE, slice(2, 5)), 1, -1).astype(np.int16)
    found = metrics.measure(reference, reference, labels=[1, 2], spacing_mm=(1, 1, 1), tolerance_mm=1)
    assert [one.status for one in found] == ["ok", "absent_ok"]


def test_dsc_alone_is_the_dsc_of_measure():
    reference, prediction = several_labels()
    labels = [2, 300, 7, 5]
    found = metrics.measure(reference, prediction, labels=labels, spacing_mm=(1, 1, 1), tolerance_mm=1)
    assert metrics.dsc(reference, prediction, labels=labels) == [one.dsc for one in found]
    assert metrics.dsc(reference, prediction, labels=[7, 5]) == [0, None]


def test_cheap_functions_read_one_expensive_result():
    reference, prediction = box(ODD_SHAPE, slice(2, 5), 4, 4), box(ODD_SHAPE, slice(2, 7), 4, 4)
    distances = distances_of(reference, prediction, ODD_SPACING_MM)
    one = measure_one(reference, prediction, ODD_SPACING_MM, 0.8)
    assert surfaces.nsd(distances, tolerance_mm=0.8) == one.nsd
    assert surfaces.hd95_mm(distances) == one.hd95_mm
    assert surfaces.hd_mm(distances) == one.hd_mm
    assert surfaces.assd_mm(distances) == one.assd_mm


def test_far_island_counts_by_its_share_of_the_surface():
    shape = (60, 20, 20)
    organ, island = box(shape, slice(2, 12), slice(2, 18), slice(2, 18)), box(shape, 55, 10, 10)
    found = measure_one(organ, organ | island, (2, 1, 1))
    assert found.hd95_mm == 0
    assert found.hd_mm == 2 * (55 - 11)  # from the island's far corners to the organ's last wall
    assert 0.99 < found.nsd < 1


def masks(shape: tuple[int, ...] = (4, 5, 6)) -> st.SearchStrategy[Mask]:
    size = math.prod(shape)
    return st.integers(0, 2**size - 1).map(
        lambda bits: np.array([bits >> n & 1 for n in range(size)], dtype=bool).reshape(shape)
    )


spacings_mm = st.sampled_from([(1.0, 1.0, 1.0), ODD_SPACING_MM, (0.8, 0.8, 2.5)])


def numbers(one: metrics.LabelMeasures) -> list[float | None]:
    """Those that are the same both ways round."""
    return values(one, ("dsc", "iou", "nsd", "nsd_voxel", *DISTANCES))


def close_to(one: metrics.LabelMeasures) -> list[object]:
    return [None if number is None else pytest.approx(number) for number in numbers(one)]


@settings(max_examples=60, deadline=None)
@given(masks(), masks(), spacings_mm)
def test_swapping_reference_and_prediction_swaps_sensitivity_and_precision_and_turns_the_sign_of_the_volume(
    first, second, spacing_mm
):
    forth, back = measure_one(first, second, spacing_mm), measure_one(second, first, spacing_mm)
    assert numbers(forth) == close_to(back)
    assert forth.volume_difference_ml == pytest.approx(-back.volume_difference_ml)
    assert (forth.sensitivity, forth.precision) == (back.precision, back.sensitivity)


@settings(max_examples=60, deadline=None)
@given(masks(), masks(), spacings_mm)
def test_emptying_a_prediction_never_improves_a_headline_number(reference, prediction, spacing_mm):
    before = measure_one(reference, prediction, spacing_mm)
    after = measure_one(reference, np.zeros_like(prediction), spacing_mm)
    if reference.any():
        assert all(one <= other for one, other in zip(values(after, OVERLAPS), values(before, OVERLAPS), strict=True))
        assert all(one >= other for one, other in zip(values(after, DISTANCES), values(before, DISTANCES), strict=True))


@settings(max_examples=60, deadline=None)
@given(masks(), masks(), spacings_mm, st.permutations(range(3)))
def test_turning_the_axes_with_their_spacing_changes_nothing(reference, prediction, spacing_mm, axes):
    turned_mm = tuple(spacing_mm[axis] for axis in axes)
    turned = measure_one(reference.transpose(axes), prediction.transpose(axes), turned_mm)
    assert numbers(turned) == close_to(measure_one(reference, prediction, spacing_mm))


@settings(max_examples=40, deadline=None)
@given(masks(), masks(), spacings_mm)
def test_background_around_the_image_changes_nothing(reference, prediction, spacing_mm):
    padded = measure_one(np.pad(reference, 3), np.pad(prediction, 3), spacing_mm)
    assert numbers(padded) == close_to(measure_one(reference, prediction, spacing_mm))


@settings(max_examples=40, deadline=None)
@given(masks(), spacings_mm)
def test_a_mask_matches_itself_perfectly(mask, spacing_mm):
    expected = [1] * 4 + [0] * 5 if mask.any() else [None] * 9
    assert numbers(measure_one(mask, mask, spacing_mm)) == expected


ZEROS = np.zeros(ODD_SHAPE, dtype=np.uint8)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prediction": ZEROS[1:]}, r"got reference \(9, 11, 13\) and prediction \(8, 11, 13\): resample"),
        ({"reference": ZEROS[0]}, r"reference: expected an integer array \(I, J, K\), got uint8 \(11, 13\)"),
        ({"prediction": ZEROS * 0.5}, r"prediction: expected an integer array \(I, J, K\), got float64"),
        ({"labels": [1, 1]}, r"labels: expected distinct integers from 1 up, got \[1, 1\]"),
        ({"labels": [0, 1]}, r"labels: expected distinct integers from 1 up, got \[0, 1\]"),
        ({"spacing_mm": (1, 1)}, r"spacing_mm: expected three lengths above 0 mm, got \(1.0, 1.0\)"),
        ({"spacing_mm": (1, 1, 0)}, "expected three lengths above 0 mm"),
        ({"spacing_mm": (1, 1, math.nan)}, "expected three lengths above 0 mm"),
    ],
)
def test_wrong_input_is_refused_with_what_was_expected_and_found(changed, message):
    options = {
        "reference": ZEROS,
        "prediction": ZEROS,
        "labels": [1],
        "spacing_mm": (1, 1, 1),
        "tolerance_mm": 1,
    }
    with pytest.raises(ValueError, match=message):
        metrics.measure(**(options | changed))
