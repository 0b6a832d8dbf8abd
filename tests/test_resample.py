import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from pipeline.resample import interpolation_orders, resample, resample_labels, resampled_shape

SHAPE = (9, 11, 13)
RANDOM = np.random.default_rng(3)


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("shape", [(18, 7, 13), (4, 30, 5)])
def test_resampling_equals_scipys_spline_zoom(order, shape):
    array = RANDOM.normal(size=SHAPE).astype(np.float32)
    factors = [new / old for new, old in zip(shape, SHAPE, strict=True)]
    expected = ndimage.zoom(array, factors, order=order, mode="nearest", grid_mode=True)
    assert np.abs(resample(array, shape, (order,) * 3) - expected).max() < 1e-4


@pytest.mark.parametrize("order", [3, 5])
def test_a_long_axis_equals_scipys_spline_zoom_to_a_thousandth_of_the_range(order):
    array = ndimage.gaussian_filter(RANDOM.normal(size=(6, 300, 7)), 1).astype(np.float32)
    expected = ndimage.zoom(array, (1, 411 / 300, 1), order=order, mode="nearest", grid_mode=True)
    assert np.abs(resample(array, (6, 411, 7), (order,) * 3) - expected).max() < 1e-4 * np.ptp(array)


def test_resampling_keeps_the_world_position_of_a_blob():
    positions = np.stack(np.meshgrid(*(np.arange(size) for size in SHAPE), indexing="ij"))
    blob = np.exp(-((positions - np.array([4, 5, 6])[:, None, None, None]) ** 2).sum(0) / 4).astype(np.float32)
    shape = (18, 11, 26)
    finer = resample(blob, shape, (3, 3, 3))
    centre = ndimage.center_of_mass(np.clip(finer, 0, None))
    as_fraction = [(index + 0.5) / size for index, size in zip(centre, shape, strict=True)]
    assert as_fraction == pytest.approx([4.5 / 9, 5.5 / 11, 6.5 / 13], abs=2e-3)


def test_leading_axes_are_resampled_alike():
    array = RANDOM.normal(size=(2, *SHAPE)).astype(np.float32)
    both = resample(array, (5, 6, 7), (3, 3, 3))
    assert np.allclose(both[1], resample(array[1], (5, 6, 7), (3, 3, 3)), atol=1e-5)


def test_the_same_shape_is_left_as_it_is():
    array = RANDOM.normal(size=SHAPE).astype(np.float32)
    assert np.array_equal(resample(array, SHAPE, (3, 3, 3)), array)


@pytest.mark.parametrize("shape", [(18, 7, 13), (4, 30, 5), (23, 24, 25)])
@pytest.mark.parametrize("orders", [(1, 1, 1), (0, 1, 1), (1, 0, 1)])
def test_resampled_labels_are_what_scipys_zoom_of_every_label_finds_heaviest(shape, orders):
    labels = (ndimage.gaussian_filter(RANDOM.normal(size=SHAPE), 1.0) * 30).astype(int).clip(-2, 3) + 2
    weights = np.stack([labels == label for label in range(6)]).astype(float)
    for axis, order in enumerate(orders):
        factors = [1.0] * 4
        factors[1 + axis] = shape[axis] / SHAPE[axis]
        weights = ndimage.zoom(weights, factors, order=order, mode="nearest", grid_mode=True)
    highest, second = np.sort(weights, axis=0)[[-1, -2]]
    is_clear = highest > second + 1e-5
    assert is_clear.mean() > 0.5
    assert np.array_equal(resample_labels(labels, shape, orders)[is_clear], weights.argmax(axis=0)[is_clear])


def test_a_tie_of_labels_goes_to_the_lower_one():
    assert resample_labels(np.array([[[7]], [[3]]]), (1, 1, 1), (1, 1, 1)) == 3
    assert resample_labels(np.array([[[3]], [[7]]]), (1, 1, 1), (1, 1, 1)) == 3


def test_labels_of_noise_are_weighed_block_by_block(monkeypatch):
    labels = RANDOM.integers(0, 4, SHAPE)
    whole = resample_labels(labels, (20, 20, 20), (1, 1, 1))
    monkeypatch.setattr("pipeline.resample.BLOCK_VOXELS", 100)
    assert np.array_equal(resample_labels(labels, (20, 20, 20), (1, 1, 1)), whole)


@given(st.tuples(*[st.integers(2, 12)] * 3))
def test_resampled_labels_are_labels_that_were_there(shape):
    labels = RANDOM.choice([0, 3, 7], size=SHAPE)
    assert set(np.unique(resample_labels(labels, shape, (1, 1, 1)))) <= {0, 3, 7}


def test_labels_of_constant_blocks_survive_doubling_and_halving():
    labels = np.zeros((8, 8, 8), int)
    labels[2:6, 2:6, 2:6] = 5
    doubled = resample_labels(labels, (16, 16, 16), (1, 1, 1))
    assert np.array_equal(resample_labels(doubled, (8, 8, 8), (1, 1, 1)), labels)


def test_the_shape_covers_the_same_box_and_never_vanishes():
    assert resampled_shape((100, 100, 20), (1, 1, 5), (2, 1, 2.5)) == (50, 100, 40)
    assert resampled_shape((1, 4, 4), (1, 1, 1), (9, 1, 1)) == (1, 4, 4)


def test_the_single_coarse_axis_of_an_anisotropic_grid_is_not_interpolated():
    assert interpolation_orders((5, 1, 1), (1, 1, 1), 3) == (0, 3, 3)
    assert interpolation_orders((1, 1, 1), (5, 1, 1), 3) == (0, 3, 3)
    assert interpolation_orders((5, 5, 1), (1, 1, 1), 3) == (3, 3, 3)
    assert interpolation_orders((2.9, 1, 1), (1, 1, 1), 3) == (3, 3, 3)
