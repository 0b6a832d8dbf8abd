"""Cleaning changes what it says and nothing else, and scores of an operation are those of the mask that it makes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics import dsc
from pipeline.postprocess import (
    NOTHING,
    OPTIONS,
    Operation,
    component_sizes,
    kept,
    postprocess,
    score_options,
)
from pipeline.records import Cohort
from pipeline.targets import per_target

SPACING_MM = (0.7, 1.0, 2.5)  # a voxel has 1.75 mm3
LABELS = Cohort("odd", "MSD", {0: "background", 2: "liver", 5: "tumour"}, {0: "T1"})
REGIONS = replace(
    LABELS,
    labels={0: "background", 2: "necrosis", 4: "oedema", 7: "active"},
    regions={"whole": [2, 4, 7], "core": [2, 7], "active": [7]},  # painted 4, 2, 7
)
LARGEST, FILL = Operation(keep_largest=True), Operation(fill_holes=True)


def clean(mask, operations, cohort=LABELS):
    return postprocess(mask, SPACING_MM, operations, cohort)


def block(*boxes, shape=(9, 11, 13)):
    """Voxels of each (value, slices)."""
    mask = np.zeros(shape, np.int32)
    for value, *slices in boxes:
        mask[tuple(slice(*ends) for ends in slices)] = value
    return mask


def test_voxels_that_share_a_corner_are_one_component_and_the_largest_stays():
    mask = np.zeros((4, 5, 6), np.int32)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[3, 4, 5] = 2
    mask[2, 4, 0] = 5
    found = clean(mask, {2: LARGEST})
    assert [*zip(*np.nonzero(found), strict=True)] == [(0, 0, 0), (1, 1, 1), (2, 4, 0)]
    assert np.count_nonzero(mask) == 4, "the mask that came in stays as it was"


def test_components_go_by_their_volume_in_mm3():
    mask = np.zeros((4, 5, 6), np.int32)
    mask[0, 0, :2] = 2  # 3.5 mm3
    mask[3, 4, 5] = 2  # 1.75 mm3
    assert np.array_equal(clean(mask, {2: Operation(min_mm3=1)}), mask)
    assert np.argwhere(clean(mask, {2: Operation(min_mm3=3)})).tolist() == [[0, 0, 0], [0, 0, 1]]
    assert not clean(mask, {2: Operation(min_mm3=10)}).any()


def test_of_equally_large_components_the_first_stays_and_of_none_none():
    assert kept(np.array([3.0, 5.0, 5.0]), LARGEST).tolist() == [False, True, False]
    assert kept(np.array([3.0, 5.0]), Operation(min_mm3=10, keep_largest=True)).tolist() == [False, False]
    assert kept(np.empty(0), LARGEST).tolist() == []


def test_only_background_that_is_cut_off_is_filled():
    closed = block((2, (0, 3), (0, 3), (0, 3)), (0, (1, 2), (1, 2), (1, 2)))  # touches the border of the image
    tunnel = block((2, (4, 7), (4, 7), (4, 7)), (0, (4, 6), (5, 6), (5, 6)))
    corner = block((2, (0, 3), (6, 9), (6, 9)), (0, (1, 2), (7, 8), (7, 8)), (0, (0, 1), (6, 7), (6, 7)))
    occupied = block((2, (5, 9), (0, 3), (9, 13)), (0, (6, 8), (1, 2), (10, 12)), (5, (6, 7), (1, 2), (10, 12)))
    found = clean(closed + tunnel + corner + occupied, {2: FILL})
    changed = np.argwhere(found != closed + tunnel + corner + occupied).tolist()
    assert changed == [[1, 1, 1], [1, 7, 7], [7, 1, 10], [7, 1, 11]], "open at a corner is closed; the tumour stays"
    assert set(found[tuple(np.transpose(changed))]) == {2}


def test_a_ring_in_a_single_slice_has_no_hole():
    ring = block((2, (0, 3), (0, 3), (0, 1)), (0, (1, 2), (1, 2), (0, 1)), shape=(5, 5, 1))
    assert np.array_equal(clean(ring, {2: FILL}), ring)


def test_what_a_later_label_leaves_in_an_earlier_one_can_be_filled_by_it():
    mask = block((2, (0, 7), (0, 7), (0, 7)), (5, (2, 3), (2, 3), (2, 3)), (5, (4, 6), (4, 6), (4, 6)))
    found = clean(mask, {2: FILL, 5: LARGEST})
    assert found[2, 2, 2] == 2
    assert (found[4:6, 4:6, 4:6] == 5).all()
    assert clean(mask, {5: LARGEST})[2, 2, 2] == 0


@pytest.mark.parametrize("operation", [LARGEST, FILL, Operation(min_mm3=30)])
@pytest.mark.parametrize("cohort", [LABELS, REGIONS], ids=["labels", "regions"])
def test_absent_labels_stay_absent_and_an_empty_mask_empty(operation, cohort):
    operations = {target.label: operation for target in cohort.targets}
    assert not clean(np.zeros((3, 4, 5), np.int32), operations, cohort).any()
    solid = block((2, (0, 5), (0, 5), (0, 5)))
    assert np.array_equal(clean(solid, operations, cohort), solid)


def test_a_component_of_a_region_goes_with_all_that_is_in_it_and_that_of_an_inner_one_to_the_outer():
    mask = block((4, (0, 5), (0, 5), (0, 5)), (2, (1, 4), (1, 4), (1, 4)), (7, (2, 3), (2, 3), (2, 3)))
    mask[8, 10, 11:] = (4, 7)
    assert np.array_equal(clean(mask, {"whole": LARGEST}, REGIONS)[8, 10, 11:], [0, 0])
    active = clean(mask, {"active": LARGEST}, REGIONS)
    assert (active[2, 2, 2], active[8, 10, 12]) == (7, 2), "the first of two equal ones stays active, the other is core"
    found = clean(mask, {"core": LARGEST}, REGIONS)
    assert found[8, 10, 11:].tolist() == [4, 4], "core was 27 voxels with the active one, and one alone"
    assert np.array_equal(found[:5, :5, :5], mask[:5, :5, :5])


def test_a_hole_of_an_inner_region_is_filled_from_the_outer_one_and_from_the_background():
    mask = block((4, (0, 7), (0, 7), (0, 7)), (2, (1, 6), (1, 6), (1, 6)), (4, (2, 3), (2, 3), (2, 3)))
    mask[4, 4, 4] = 0
    found = clean(mask, {"core": FILL}, REGIONS)
    assert (found[2, 2, 2], found[4, 4, 4]) == (2, 2)
    assert clean(mask, {"whole": FILL}, REGIONS)[4, 4, 4] == 4


def scores(reference, prediction, options, cohort):
    num_reference = [int(sizes.sum()) for sizes in component_sizes(reference, cohort)]
    return score_options(reference, prediction, num_reference, spacing_mm=SPACING_MM, options=options, cohort=cohort)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([LABELS, REGIONS]), st.sampled_from([None, 9]))
def test_the_score_of_an_option_is_that_of_the_mask_which_it_makes(seed, cohort, ignore_label):
    random, cohort = np.random.default_rng(seed), replace(cohort, ignore_label=ignore_label)
    values = [*cohort.labels, *cohort.labels, *([9] if ignore_label else [])]
    reference = random.choice(values, (4, 5, 6)).astype(np.int32)
    prediction = np.repeat(random.choice([*cohort.labels], (4, 5, 3)), 2, axis=2).astype(np.int32)
    options = (NOTHING, FILL, Operation(min_mm3=10), Operation(fill_holes=True, min_mm3=10), LARGEST)
    table = scores(reference, prediction, options, cohort)
    for row, target in enumerate(cohort.targets):
        for column, option in enumerate(options):
            cleaned = clean(prediction, {target.label: option}, cohort)
            expected = per_target(dsc, reference, cleaned, cohort, cohort.targets)[row]
            assert table[row, column] == pytest.approx(np.nan if expected is None else expected, nan_ok=True, abs=1e-6)


def test_a_label_in_one_of_both_scores_0_and_in_neither_nothing():
    empty, full = np.zeros((3, 4, 5), np.int32), np.full((3, 4, 5), 2, np.int32)
    assert scores(full, empty, OPTIONS, LABELS)[0].tolist() == [0] * len(OPTIONS)
    assert scores(empty, full, (NOTHING, LARGEST), LABELS)[0].tolist() == [0, 0]
    assert np.isnan(scores(empty, empty, OPTIONS, LABELS)).all()
    gone = scores(empty, full, (NOTHING, Operation(min_mm3=1000)), LABELS)[0]
    assert (gone[0], np.isnan(gone[1])) == (0, True), "nothing where nothing should be"


def test_components_of_a_reference_are_counted_label_by_label():
    reference = block((2, (0, 2), (0, 2), (0, 2)), (2, (5, 6), (5, 6), (5, 6)))
    liver, tumour = component_sizes(reference, LABELS)
    assert (liver.tolist(), tumour.tolist()) == ([8, 1], [])


def test_an_operation_says_in_words_what_it_does():
    assert Operation(True, 30.0, False).words() == "holes filled, components under 30 mm³ removed"
    assert LARGEST.words() == "largest component kept"
