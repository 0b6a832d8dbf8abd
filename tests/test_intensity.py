from dataclasses import replace

import numpy as np
import pytest

from pipeline.intensity import describe, nonzero_box, normalise

NOTHING = describe(np.empty(0))


def test_ct_is_clipped_to_the_cohorts_percentiles_then_scaled_by_its_mean_and_deviation():
    foreground = describe(np.linspace(0, 100, 1001))
    result = normalise(np.array([[[-1000.0, 50.0, 3000.0]]], np.float32), "ct", foreground)
    assert result.ravel() == pytest.approx([(0.5 - 50) / foreground.std, 0, (99.5 - 50) / foreground.std], abs=1e-4)


def test_zscore_has_zero_mean_and_unit_deviation():
    result = normalise(np.random.default_rng(0).normal(7, 3, (9, 11, 13)).astype(np.float32), "zscore", NOTHING)
    assert (result.mean(), result.std()) == pytest.approx((0, 1), abs=1e-4)


def test_zscore_inside_nonzero_voxels_leaves_the_others_zero():
    image = np.zeros((4, 4, 4), np.float32)
    image[1:3, 1:3, 1:3] = np.arange(1, 9).reshape(2, 2, 2)
    result = normalise(image, "zscore_nonzero", NOTHING)
    assert (result[image == 0] == 0).all()
    assert result[image != 0].mean() == pytest.approx(0, abs=1e-6)


def test_rescale_takes_the_minimum_to_zero_and_the_maximum_to_one():
    result = normalise(np.array([[[-50.0, 0.0, 150.0]]], np.float32), "rescale", NOTHING)
    assert result.ravel() == pytest.approx([0, 0.25, 1])
    assert (normalise(np.full((3, 4, 5), 7, np.float32), "rescale", NOTHING) == 0).all(), "a constant channel"


def test_percentiles_go_to_zero_and_one_and_what_is_beyond_is_clipped():
    image = np.arange(1001, dtype=np.float32)[None, None]
    image[0, 0, -1] = 1e6
    result = normalise(image, "percentile", NOTHING)
    assert (result.min(), result.max()) == (0, 1)
    assert result[0, 0, 500] == pytest.approx(0.5, abs=1e-4)


def test_none_leaves_every_value_as_it_is():
    image = np.random.default_rng(0).normal(700, 300, (9, 11, 13)).astype(np.float32)
    result = normalise(image, "none", NOTHING)
    assert (result == image).all()
    assert result.dtype == np.float32


@pytest.mark.parametrize("scheme", ["zscore", "zscore_nonzero", "ct", "percentile", "rescale", "none"])
@pytest.mark.parametrize("value", [0.0, 5.0])
def test_a_constant_scan_gives_finite_numbers(scheme, value):
    assert np.isfinite(normalise(np.full((3, 3, 3), value, np.float32), scheme, NOTHING)).all()


@pytest.mark.parametrize(
    ("scheme", "value"),
    [("zscore", 0), ("zscore_nonzero", 0), ("percentile", 0), ("rescale", 0), ("none", 100), ("ct", 0.5)],
)
def test_a_constant_channel_gives_zeros_where_the_case_sets_the_scale(scheme, value):
    foreground = replace(NOTHING, mean=0, std=200, percentile_00_5=-500, percentile_99_5=500)
    assert (normalise(np.full((3, 4, 5), 100, np.float32), scheme, foreground) == value).all()


def test_no_foreground_at_all_is_described_by_zeros_and_a_deviation_of_one():
    assert (NOTHING.mean, NOTHING.std) == (0, 1)


def test_the_nonzero_box_holds_what_any_channel_shows():
    image = np.zeros((2, 9, 11, 13), np.float32)
    image[0, 2, 3, 4] = image[1, 5, 3, 9] = 1
    assert nonzero_box(image) == (slice(2, 6), slice(3, 4), slice(4, 10))


def test_the_box_of_an_empty_scan_is_all_of_it():
    assert nonzero_box(np.zeros((1, 3, 4, 5), np.float32)) == (slice(0, 3), slice(0, 4), slice(0, 5))
