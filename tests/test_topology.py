from functools import partial

import numpy as np
import pytest

from pipeline.topology import (
    LOW_RESOLUTION_BELOW,
    PRESETS,
    Memory,
    Topology,
    coarsest_first,
    fit_batch,
    fit_memory,
    low_resolution,
    memory_gib_of,
    target_spacing,
    topology,
)

COHORTS = {  # spacing mm; median shape; cases; labels with background
    "hippocampus": ((1, 1, 1), (36, 50, 35), 260, 3),
    "heart": ((1.37, 1.25, 1.25), (115, 320, 232), 20, 2),
    "prostate": ((3.6, 0.625, 0.625), (20, 320, 319), 32, 3),
    "brain tumour": ((1, 1, 1), (138, 169, 138), 484, 4),
    "liver": ((1, 0.7676, 0.7676), (432, 512, 512), 131, 3),
    "acdc": ((5, 1.5625, 1.5625), (18, 237, 208), 200, 4),
    "spleen": ((1.6, 0.793, 0.793), (187, 512, 512), 41, 2),
    "lung": ((1.24, 0.785, 0.785), (252, 512, 512), 63, 2),
}
GOLDEN = {  # nnU-Net's plans: preset -> patch, batch
    ("hippocampus", 3): {p: ((40, 56, 40), batch) for p, batch in zip(PRESETS, (9, 58, 178), strict=True)},
    ("heart", 3): {"plain": ((80, 192, 160), 2), "M": ((80, 192, 160), 2), "L": ((112, 288, 224), 2)},
    ("prostate", 3): {"plain": ((20, 320, 256), 2), "M": ((20, 256, 256), 2), "L": ((20, 320, 320), 5)},
    ("brain tumour", 3): {"plain": ((128, 128, 128), 2), "M": ((128, 128, 128), 2), "L": ((160, 192, 160), 3)},
    ("liver", 3): {"plain": ((128, 128, 128), 2), "M": ((128, 128, 128), 2), "L": ((160, 224, 192), 2)},
    ("acdc", 3): {p: ((20, 256, 224), batch) for p, batch in zip(PRESETS, (4, 3, 10), strict=True)},
    ("spleen", 3): {"plain": ((64, 192, 160), 2), "M": ((64, 160, 160), 2), "L": ((80, 256, 256), 2)},
    ("lung", 3): {"plain": ((80, 192, 160), 2), "M": ((80, 192, 160), 2), "L": ((112, 256, 256), 2)},
    ("hippocampus", 2): {p: ((56, 40), batch) for p, batch in zip(PRESETS, (366, 1618, 4554), strict=True)},
    ("heart", 2): {p: ((320, 256), batch) for p, batch in zip(PRESETS, (40, 40, 113), strict=True)},
    ("prostate", 2): {p: ((320, 320), batch) for p, batch in zip(PRESETS, (32, 32, 90), strict=True)},
    ("brain tumour", 2): {p: ((192, 160), batch) for p, batch in zip(PRESETS, (105, 107, 301), strict=True)},
    ("liver", 2): {p: ((512, 512), batch) for p, batch in zip(PRESETS, (12, 12, 35), strict=True)},
    ("acdc", 2): {p: ((256, 224), batch) for p, batch in zip(PRESETS, (56, 57, 161), strict=True)},
    ("spleen", 2): {p: ((512, 512), batch) for p, batch in zip(PRESETS, (12, 13, 35), strict=True)},
    ("lung", 2): {p: ((512, 512), batch) for p, batch in zip(PRESETS, (12, 13, 35), strict=True)},
}
POOLS = {  # times that each axis is halved, and stages whose kernel is flat across the first
    "hippocampus": (dict.fromkeys(PRESETS, (3, 3, 3)), 0),
    "heart": (dict.fromkeys(PRESETS, (4, 5, 5)), 0),
    "prostate": (dict.fromkeys(PRESETS, (2, 6, 6)), 2),
    "brain tumour": (dict.fromkeys(PRESETS, (5, 5, 5)), 0),
    "liver": (dict.fromkeys(PRESETS, (5, 5, 5)), 0),
    "acdc": (dict.fromkeys(PRESETS, (2, 5, 5)), 1),
    "spleen": ({"plain": (4, 5, 5), "M": (4, 5, 5), "L": (4, 6, 6)}, 1),
    "lung": ({"plain": (4, 5, 5), "M": (4, 5, 5), "L": (4, 6, 6)}, 0),
}


def memory_of(preset, num_outputs):
    """The memory for which nnU-Net published its plans."""
    reference = PRESETS[preset].reference[3]
    return Memory(reference.gib, num_outputs, PRESETS[preset])


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dims", [3, 2])
@pytest.mark.parametrize("cohort", COHORTS)
def test_patch_and_batch_equal_nnunets_published_plans(cohort, dims, preset):
    spacing, shape, num_cases, num_labels = COHORTS[cohort]
    memory = memory_of(preset, num_labels)
    fitted = fit_memory(spacing[-dims:], shape[-dims:], memory)
    batch = fit_batch(fitted, memory, median_voxels=float(np.prod(shape)), num_cases=num_cases)
    assert (fitted.patch_size, batch) == GOLDEN[cohort, dims][preset]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("cohort", COHORTS)
def test_strides_and_kernels_follow_the_spacing(cohort, preset):
    spacing, shape, _, num_labels = COHORTS[cohort]
    pools, num_flat_kernels = POOLS[cohort]
    fitted = fit_memory(spacing, shape, memory_of(preset, num_labels))
    assert fitted.divisors == tuple(2**pool for pool in pools[preset])
    assert len(fitted.strides) == max(pools[preset]) + 1
    assert sum(kernel == (1, 3, 3) for kernel in fitted.kernels) == num_flat_kernels


@pytest.mark.parametrize(("cohort", "stages"), [("hippocampus", 4), ("liver", 8)])
def test_slices_are_halved_until_an_edge_would_fall_under_four_voxels(cohort, stages):
    spacing, shape, _, num_labels = COHORTS[cohort]
    assert len(fit_memory(spacing[1:], shape[1:], Memory(8, num_labels)).strides) == stages


def test_a_number_of_stages_ends_the_halving():
    assert len(topology((1, 1, 1), (64, 64, 64)).strides) == 5
    assert topology((1, 1, 1), (63, 64, 64), most_stages=3).patch_size == (64, 64, 64)
    assert len(topology((1, 1, 1), (64, 64, 64), most_stages=3).kernels) == 3


def test_the_estimate_of_the_reference_network_is_its_memory():
    """M and L keep six residual blocks in each stage past the third, as nnU-Net does."""
    whole = Topology(((1, 1, 1), (2, 2, 2)), ((3, 3, 3),) * 2, (16, 16, 16))
    plain = 5 * 32 * 4096 + 2 * 64 * 512 + 4 * 4096
    residual = 32 * 4096 + (2 + 2) * 32 * 4096 + (2 * 3 + 1) * 64 * 512 + 4 * 4096
    assert memory_gib_of(whole, 2, memory_of("plain", 4)) == pytest.approx(8 * plain / 560e6)
    assert memory_gib_of(whole, 4, memory_of("L", 4)) == pytest.approx(2 * 24 * residual / 2.1e9)


@pytest.mark.parametrize("cohort", ["hippocampus", "heart", "prostate", "brain tumour", "acdc"])
def test_no_low_resolution_where_a_patch_covers_a_quarter_of_the_scan(cohort):
    spacing, shape, _, num_labels = COHORTS[cohort]
    fit = partial(fit_memory, memory=Memory(8, num_labels))
    low, reason = low_resolution(spacing, shape, fit)
    assert low is None
    assert "of the median scan, a quarter or more" in reason


@pytest.mark.parametrize("cohort", ["liver", "spleen", "lung"])
def test_low_resolution_lets_a_patch_cover_a_quarter_of_the_scan(cohort):
    spacing, shape, _, num_labels = COHORTS[cohort]
    fit = partial(fit_memory, memory=Memory(8, num_labels))
    low, reason = low_resolution(spacing, shape, fit)
    growth = np.array(low) / spacing
    shape = np.array(shape) / growth
    covered = np.prod(fit(low, shape.round().tolist()).patch_size) / shape.prod()
    assert LOW_RESOLUTION_BELOW <= covered < 1.2 * LOW_RESOLUTION_BELOW
    assert growth.prod() > 2
    assert np.argmax(low) == np.argmax(spacing)
    assert "until a patch covers" in reason


def test_low_resolution_grows_the_finest_axes_first():
    low, _ = low_resolution((5, 1, 1), (100, 700, 700), partial(fit_memory, memory=Memory(8, 3)))
    assert low[1] == low[2]
    assert low[0] / 5 < low[1] / 1


def test_low_resolution_is_left_out_where_scans_hardly_shrink():
    low, reason = low_resolution((1, 1, 1), (212, 212, 212), partial(fit_memory, memory=Memory(8, 3)))
    assert low is None
    assert "times the voxels of low resolution, 2 expected" in reason


def test_a_patch_is_padded_until_every_stride_divides_it():
    fitted = topology((1, 1, 1), (36, 50, 35))
    assert fitted.patch_size == (40, 56, 40)


def test_more_memory_gives_a_larger_patch():
    small, large = (fit_memory((1, 1, 1), (138, 169, 138), Memory(gib, 4)) for gib in (8, 24))
    assert np.prod(large.patch_size) > np.prod(small.patch_size)


def test_the_coarse_axis_of_an_anisotropic_cohort_is_refined_to_its_tenth_percentile():
    spacings = np.array([[4.0, 1, 1]] * 8 + [[3.5, 1, 1]] * 2)
    shapes = np.array([[20, 100, 100]] * 10)
    assert target_spacing(spacings, shapes) == pytest.approx((3.5, 1, 1))
    assert target_spacing(spacings, shapes * (4, 1, 1)) == pytest.approx((4, 1, 1)), "many slices: not refined"


def test_the_refined_coarse_axis_stays_coarsest():
    spacings = np.array([[4.0, 1, 1]] * 8 + [[0.5, 1, 1]] * 2)
    assert target_spacing(spacings, np.array([[20, 100, 100]] * 10)) == pytest.approx((1.00001, 1, 1))


def test_the_coarsest_axis_leads_and_ties_keep_their_order():
    assert coarsest_first((1, 3, 2)) == (1, 0, 2)
    assert coarsest_first((1, 1, 1)) == (0, 1, 2)
