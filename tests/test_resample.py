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
