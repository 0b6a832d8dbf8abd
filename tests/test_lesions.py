"""Promises of lesion-wise measures: what is one lesion, when it is found, and what nothing gives."""

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.metrics import LesionMeasures, measure_lesions

Mask = NDArray[np.uint8]


def cubes(*places: tuple[slice, ...], size: int = 24) -> Mask:
    mask = np.zeros((size,) * 3, np.uint8)
    for place in places:
        mask[place] = 1
    return mask


def measure_one(reference: Mask, prediction: Mask) -> LesionMeasures:
    return measure_lesions(reference, prediction, labels=[1])[0]


def shares(found: LesionMeasures) -> tuple[float | None, ...]:
    return astuple(found)[3:]


FIRST, SECOND = (slice(2, 6),) * 3, (slice(15, 20),) * 3


def test_l1_one_found_one_missed_one_invented() -> None:
    """The vector L1 of the definitions: RQ 0.5, SQ 0.6, PQ 0.3."""
    shifted, invented = (slice(2, 6), slice(2, 6), slice(3, 7)), (slice(10, 12), slice(2, 4), slice(20, 22))
    found = measure_one(cubes(FIRST, SECOND), cubes(shifted, invented))
    assert astuple(found)[:3] == (1, 1, 1)
    assert shares(found) == pytest.approx((0.5, 0.5, 0.5, 0.6, 0.3), abs=1e-6)


def test_c1_voxels_that_touch_at_a_corner_are_one_lesion() -> None:
    corner = cubes((4, 4, 4), (5, 5, 5))
    found = measure_one(corner, corner)
    assert astuple(found) == (1, 0, 0, 1, 1, 1, 1, 1)


def test_half_of_the_union_is_enough_and_less_is_not() -> None:
    whole = cubes((4, 4, slice(0, 8)))
    assert measure_one(whole, cubes((4, 4, slice(0, 4)))).lesion_tp == 1
    assert astuple(measure_one(whole, cubes((4, 4, slice(0, 3)))))[:3] == (0, 1, 1)


def test_two_halves_of_a_lesion_find_it_not_twice() -> None:
    """What lies between them makes each less than half."""
    found = measure_one(cubes((4, 4, slice(0, 9))), cubes((4, 4, slice(0, 4)), (4, 4, slice(5, 9))))
    assert astuple(found)[:3] == (0, 2, 1)


def test_what_nothing_gives() -> None:
    nothing = cubes()
    assert astuple(measure_one(nothing, nothing)) == (0, 0, 0, None, None, None, None, None)
    assert astuple(measure_one(cubes(FIRST), nothing)) == (0, 0, 1, 0, 0, 0, 0, 0)
    assert astuple(measure_one(nothing, cubes(FIRST, SECOND))) == (0, 2, 0, 0, 0, 0, 0, 0)


def test_each_label_has_lesions_of_its_own_in_the_order_asked() -> None:
    both = cubes(FIRST) + 2 * cubes(SECOND)
    found = measure_lesions(both, both * (both != 2), labels=[2, 1])
    assert [(one.lesion_tp, one.lesion_fn) for one in found] == [(0, 1), (1, 0)]


def test_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got reference \(24, 24, 24\) and prediction \(9, 9, 9\): resample"):
        measure_one(cubes(), cubes(size=9))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 0.5), st.floats(0, 0.5))
def test_found_and_missed_are_all_lesions_and_swapping_the_masks_swaps_them(
    seed: int, share: float, other_share: float
) -> None:
    rng = np.random.default_rng(seed)
    reference, prediction = ((rng.random((5, 6, 7)) < one).astype(np.uint8) for one in (share, other_share))
    prediction |= reference * (rng.random((5, 6, 7)) < 0.8)
    forth, back = measure_one(reference, prediction), measure_one(prediction, reference)
    assert (forth.lesion_tp, forth.lesion_fp, forth.lesion_fn) == (back.lesion_tp, back.lesion_fn, back.lesion_fp)
    assert (forth.lesion_f1, forth.sq, forth.pq) == pytest.approx((back.lesion_f1, back.sq, back.pq))
    emptied = measure_one(reference, prediction * 0)
    if reference.any():
        assert all(one <= other for one, other in zip(shares(emptied), shares(forth), strict=True))
