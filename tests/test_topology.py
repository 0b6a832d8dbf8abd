import numpy as np
import pytest

from pipeline.topology import coarsest_first, fit_batch, fit_memory, target_spacing, topology

GOLDEN = {  # cohort: spacing mm; median shape; cases; labels with background -> (3D patch, batch), (2D patch, batch)
    "hippocampus": ((1, 1, 1), (36, 50, 35), 260, 3, ((40, 56, 40), 9), ((56, 40), 366)),
    "heart": ((1.37, 1.25, 1.25), (115, 320, 232), 20, 2, ((80, 192, 160), 2), ((320, 256), 40)),
    "prostate": ((3.6, 0.625, 0.625), (20, 320, 319), 32, 3, ((20, 320, 256), 2), ((320, 320), 32)),
    "brain tumour": ((1, 1, 1), (138, 169, 138), 484, 4, ((128, 128, 128), 2), ((192, 160), 105)),
    "liver": ((1, 0.7676, 0.7676), (432, 512, 512), 131, 3, ((128, 128, 128), 2), ((512, 512), 12)),
    "acdc": ((5, 1.5625, 1.5625), (18, 237, 208), 200, 4, ((20, 256, 224), 4), ((256, 224), 56)),
    "spleen": ((1.6, 0.793, 0.793), (187, 512, 512), 41, 2, ((64, 192, 160), 2), ((512, 512), 12)),
    "lung": ((1.24, 0.785, 0.785), (252, 512, 512), 63, 2, ((80, 192, 160), 2), ((512, 512), 12)),
}


@pytest.mark.parametrize("cohort", GOLDEN)
@pytest.mark.parametrize("dims", [3, 2])
def test_patch_and_batch_equal_nnunets_published_plans(cohort, dims):
    spacing, shape, num_cases, num_labels, *expected = GOLDEN[cohort]
    fitted = fit_memory(spacing[-dims:], shape[-dims:], num_labels, memory_gib=8)
    batch = fit_batch(fitted, num_labels, 8, median_voxels=float(np.prod(shape)), num_cases=num_cases)
    assert (fitted.patch_size, batch) == expected[3 - dims]


@pytest.mark.parametrize(
    ("cohort", "pools", "num_flat_kernels"),
    [("hippocampus", (3, 3, 3), 0), ("prostate", (2, 6, 6), 2), ("acdc", (2, 5, 5), 1), ("heart", (4, 5, 5), 0)],
)
def test_strides_and_kernels_follow_the_spacing(cohort, pools, num_flat_kernels):
    spacing, shape, _, num_labels, *_ = GOLDEN[cohort]
    fitted = fit_memory(spacing, shape, num_labels, memory_gib=8)
    assert fitted.divisors == tuple(2**pool for pool in pools)
    assert sum(kernel == (1, 3, 3) for kernel in fitted.kernels) == num_flat_kernels


def test_a_patch_is_padded_until_every_stride_divides_it():
    fitted = topology((1, 1, 1), (36, 50, 35))
    assert fitted.patch_size == (40, 56, 40)


def test_more_memory_gives_a_larger_patch():
    small, large = (fit_memory((1, 1, 1), (138, 169, 138), 4, memory_gib=gib) for gib in (8, 24))
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
