import sys

import numpy as np
import pytest

from pipeline.bias import evened
from pipeline.errors import PlanError
from pipeline.intensity import nonzero_box
from pipeline.preprocess import prepare
from tests.test_preprocess import make_plan

SHAPE, SPACING = (36, 44, 24), (2.0, 1.5, 2.5)


def phantom():
    """Two tissues in a head, and the same under a field that falls to about a third from one side to the other."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij")
    head = (x / 0.9) ** 2 + (y / 0.9) ** 2 + (z / 0.9) ** 2 < 1
    tissue = np.where((np.sin(9 * x) + np.sin(8 * y) + np.sin(7 * z)) > 0, 150.0, 100.0) * head
    noise = np.random.default_rng(0).normal(0, 1, SHAPE) * head
    return (tissue + noise).astype(np.float32), ((tissue + noise) * np.exp(0.5 * x)).astype(np.float32), tissue


def unevenness(image, tissue):
    """Standard deviation over mean within a tissue."""
    return np.mean([image[tissue == grey].std() / image[tissue == grey].mean() for grey in (100, 150)])


def test_a_tissue_is_about_as_bright_everywhere_once_the_field_is_divided_out():
    even, uneven, tissue = phantom()
    found = evened(uneven, SPACING)
    assert found.dtype == np.float32
    assert unevenness(uneven, tissue) > 0.2
    assert unevenness(found, tissue) < 0.05
    assert (found[even == 0] == 0).all(), "so that the crop to nonzero voxels is the same"


def test_the_axis_of_the_field_is_the_axis_of_the_array():
    _, uneven, tissue = phantom()
    found = evened(uneven.transpose(2, 0, 1), (SPACING[2], SPACING[0], SPACING[1]))
    assert unevenness(found.transpose(1, 2, 0), tissue) < 0.05


def test_the_same_scan_is_corrected_to_the_same_bytes():
    _, uneven, _ = phantom()
    assert evened(uneven, SPACING).tobytes() == evened(uneven, SPACING).tobytes()


@pytest.mark.parametrize("value", [0.0, 5.0, -5.0])
def test_nothing_is_done_where_there_is_nothing_to_fit(value):
    constant = np.full((4, 5, 6), value, np.float32)
    assert np.array_equal(evened(constant, (1.0, 1.0, 1.0)), constant)


def test_a_prepared_channel_is_even_where_the_plan_says_so():
    _, uneven, tissue = phantom()
    plan = make_plan(normalisation=("none",), axes="zyx", spacing_mm=SPACING[::-1])
    assert plan.bias_corrected == ()
    corrected = make_plan(normalisation=("none",), axes="zyx", spacing_mm=SPACING[::-1], bias_corrected=(0,))
    inside = tissue[nonzero_box(uneven[None])].transpose(2, 1, 0)
    assert unevenness(prepare(uneven[None], SPACING, plan).image[0], inside) > 0.2
    assert unevenness(prepare(uneven[None], SPACING, corrected).image[0], inside) < 0.05


def test_without_simpleitk_the_user_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(PlanError, match=r"SimpleITK to do it expected. `pip install simpleitk`, or remove the setting"):
        evened(np.ones(SHAPE, np.float32), SPACING)
