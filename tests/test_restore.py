"""Restoring row by row agrees with interpolating everything at once."""

from itertools import pairwise

import numpy as np
import pytest

from pipeline.preprocess import Placement
from pipeline.probabilities import open_prediction, save_prediction
from pipeline.resample import interpolation_orders, linear_taps, resample
from pipeline.restore import Prediction, restore_labels, restore_values
from tests.dense import gathered
from tests.test_preprocess import make_plan

SCAN = (18, 22, 13)  # RAS
BOX = ((1, 17), (0, 21), (2, 13))
LABELS = (0, 2, 5, 7)
CUTS = ([0, 1, 3, 8], [0, 8], list(range(9)))  # of 8 rows into slabs


def placement(axes="zyx", spacing_mm=(2.5, 1.0, 0.7)):
    size = {axis: stop - start for axis, (start, stop) in zip("xyz", BOX, strict=True)}
    return Placement(axes, SCAN, BOX, tuple(size[axis] for axis in axes), spacing_mm)


def smooth_maps(shape, num_maps=4, seed=0):
    """(L, D, H, W) that sum to one, with borders between any two of them."""
    coarse = np.random.default_rng(seed).normal(size=(num_maps, 3, 3, 3)).astype(np.float32)
    logits = 4 * resample(coarse, shape, (3, 3, 3))
    exponential = np.exp(logits - logits.max(axis=0))
    return exponential / exponential.sum(axis=0)


def slabs_of(maps, cuts):
    return [maps[:, start:stop] for start, stop in pairwise(cuts)]


def densely(maps, where):
    """(L, …) on the whole scan by `resample`, 0 outside the crop."""
    sizes = zip(where.spacing_mm, where.cropped_shape, maps.shape[1:], strict=True)
    prepared_mm = tuple(own * old / new for own, old, new in sizes)
    linear = resample(maps, where.cropped_shape, interpolation_orders(prepared_mm, where.spacing_mm, order=1))
    whole = np.zeros((len(maps), *where.shape_ras), np.float32)
    order = [where.axes.index(axis) + 1 for axis in "xyz"]
    whole[(slice(None), *(slice(*part) for part in where.box))] = linear.transpose(0, *order)
    return whole


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("axes", ["zyx", "xzy", "yxz"])
@pytest.mark.parametrize("in_plane", [(30, 9), (21, 16), (11, 40)])
def test_labels_row_by_row_are_those_of_interpolating_everything(axes, cuts, in_plane):
    maps, where = smooth_maps((8, *in_plane)), placement(axes)
    found = restore_labels([Prediction(slabs_of(maps, cuts), maps.shape[1:], where)], make_plan(labels=LABELS))
    expected = np.array(LABELS)[densely(maps, where).argmax(axis=0)]
    assert found.shape == SCAN
    assert found.dtype == np.uint8
    assert (found != expected).mean() < 1e-3, "ties only"
    assert len(np.unique(found)) == 4


def test_a_coarse_first_axis_takes_the_nearest_row():
    maps, where = smooth_maps((11, 10, 10)), placement(spacing_mm=(5.0, 1.0, 0.7))
    found = restore_labels([Prediction([maps], maps.shape[1:], where)], make_plan(labels=LABELS))
    assert (found != np.array(LABELS)[densely(maps, where).argmax(axis=0)]).mean() < 1e-3


def test_regions_row_by_row_are_those_of_interpolating_everything():
    regions = ((1, 2, 3), (2, 3), (3,))
    maps, where = smooth_maps((8, 30, 9), num_maps=2), placement()
    maps = np.stack([maps[0], maps[0] * 0.9, maps[0] * 0.7])
    found = restore_labels([Prediction([maps], maps.shape[1:], where)], make_plan(labels=(0, 1, 2, 3), regions=regions))
    expected = (densely(maps, where) > 0.5).sum(axis=0)
    assert (found != expected).mean() < 1e-3
    assert set(np.unique(found)) == {0, 1, 2, 3}


def test_the_mean_of_predictions_on_different_grids_and_axes_is_restored():
    first, second = smooth_maps((8, 30, 9)), smooth_maps((14, 12, 20), seed=1)
    places = placement(), placement("xyz", (0.7, 1.0, 2.5))
    predictions = [
        Prediction([maps], maps.shape[1:], where) for maps, where in zip((first, second), places, strict=True)
    ]
    found = restore_labels(predictions, make_plan(labels=LABELS))
    mean = np.mean([densely(maps, where) for maps, where in zip((first, second), places, strict=True)], axis=0)
    assert (found != np.array(LABELS)[mean.argmax(axis=0)]).mean() < 1e-3


def test_values_row_by_row_are_those_of_interpolating_everything():
    maps, where = smooth_maps((8, 30, 9), seed=3) * 80, placement()
    found = restore_values([Prediction(slabs_of(maps, [0, 3, 8]), maps.shape[1:], where)])
    assert np.abs(found - densely(maps[:1], where)[0]).max() < 1e-3


@pytest.mark.parametrize(("old", "new"), [(1, 1), (1, 5), (5, 1), (9, 13), (13, 9), (40, 7)])
@pytest.mark.parametrize("order", [0, 1])
def test_taps_are_what_resampling_mixes(old, new, order):
    values = np.random.default_rng(0).normal(size=old).astype(np.float32)
    first, second, weight = linear_taps(old, new, order)
    mixed = (1 - weight) * values[first] + weight * values[second]
    assert np.abs(mixed - resample(values, (new,), (order,))).max() < 1e-5


def test_stored_slabs_pass_on_and_come_back_in_steps_as_often_as_wanted(tmp_path):
    maps, where = smooth_maps((8, 11, 9)), placement()
    path = tmp_path / "case.npz"
    passing = save_prediction(path, Prediction(slabs_of(maps, [0, 3, 8]), maps.shape[1:], where))
    assert not path.exists()
    assert np.array_equal(gathered(passing.slabs), maps)
    stored = open_prediction(path, where)
    assert stored.shape == (8, 11, 9)
    for _ in range(2):
        assert np.abs(gathered(stored.slabs).astype(np.float32) / 255 - maps).max() <= 0.5 / 255 + 1e-6
    found, expected = (
        restore_labels([one], make_plan(labels=LABELS)) for one in (stored, Prediction([maps], maps.shape[1:], where))
    )
    assert (found != expected).mean() < 0.01


def test_a_prediction_that_breaks_off_leaves_no_file(tmp_path):
    def slabs():
        yield np.zeros((2, 3, 4, 4), np.float32)
        raise RuntimeError("power cut")

    passing = save_prediction(tmp_path / "case.npz", Prediction(slabs(), (8, 4, 4), placement()))
    with pytest.raises(RuntimeError, match="power cut"):
        gathered(passing.slabs)
    assert list(tmp_path.iterdir()) == []


def test_the_last_slab_is_asked_for_even_where_no_row_needs_it(tmp_path):
    maps, where = smooth_maps((60, 11, 9)), placement()
    path = tmp_path / "case.npz"
    restore_labels(
        [save_prediction(path, Prediction(slabs_of(maps, [0, 57, 58, 59, 60]), (60, 11, 9), where))],
        make_plan(labels=LABELS),
    )
    assert path.exists()
