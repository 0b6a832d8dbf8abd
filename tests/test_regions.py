import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.regions import crossing, paint, painted_values
from pipeline.restore import Prediction, restore_labels
from tests.dense import as_it_is
from tests.test_preprocess import make_plan

TUMOUR = ((1, 2, 3), (2, 3), (3,))


@pytest.mark.parametrize(
    ("regions", "values"),
    [
        (TUMOUR, [1, 2, 3]),
        (((4, 2),), [2]),
        (((2,), (1, 2)), [0, 1]),
        ((), []),
    ],
    ids=["nested", "lowest", "hidden", "none"],
)
def test_a_region_is_painted_with_its_lowest_value_that_no_later_region_has(regions, values):
    assert painted_values(regions) == values


@pytest.mark.parametrize(
    ("regions", "places"),
    [
        (TUMOUR, None),
        (((1, 2, 3), (1,), (3,)), None),
        (((1,), (2,)), None),
        ((), None),
        (((1, 2), (2, 3)), (0, 1)),
        (((7,), (1, 2), (1, 2)), (1, 2)),
        (((1,), (1, 2)), (0, 1)),
    ],
    ids=["nested", "two in one", "apart", "none", "overlapping", "equal", "larger later"],
)
def test_regions_cross_where_they_overlap_and_the_later_is_no_part_of_the_earlier(regions, places):
    assert crossing(regions) == places


@given(st.lists(st.sampled_from([0, 1, 2, 3]), min_size=8, max_size=8))
def test_painting_the_regions_of_nested_labels_gives_the_labels_back(labels):
    labels = np.array(labels).reshape(2, 2, 2)
    masks = np.stack([np.isin(labels, values) for values in TUMOUR])
    assert np.array_equal(paint(masks, TUMOUR), labels)


def test_later_regions_are_painted_over_earlier_ones_and_background_where_there_is_none():
    masks = np.array([[True, True, False, False], [False, True, True, False]]).reshape(2, 4, 1, 1)
    assert paint(masks, ((1, 2), (2,))).ravel().tolist() == [1, 2, 2, 0]


def test_the_label_map_has_the_regions_of_more_than_one_half_and_the_likeliest_label():
    probabilities = np.array([[0.2, 0.6, 0.9, 0.5], [0.1, 0.4, 0.6, 0.5], [0.0, 0.3, 0.55, 0.1]], np.float32)
    probabilities = probabilities.reshape(3, 4, 1, 1)

    def label_map(probabilities, plan):
        prediction = Prediction([probabilities], (4, 1, 1), as_it_is((4, 1, 1)))
        return restore_labels([prediction], plan).ravel().tolist()

    assert label_map(probabilities, make_plan(labels=(0, 1, 2, 3), regions=TUMOUR)) == [0, 1, 3, 0]
    assert label_map(probabilities, make_plan()) == [0, 0, 0, 0]
    assert label_map(probabilities[::-1], make_plan()) == [5, 5, 5, 2]
