"""Augmentation: each change agrees with MONAI's (scipy's, numpy's) for the same parameters, and is drawn as often as said.

Tolerances: 1e-5 where both sides do the same float32 arithmetic in another order on values of about one, 1e-4 where
positions are rounded too (a position of some 100 rows has an error of 1e-5 voxels, the images here change by up to 5 per voxel).
"""

import math

import numpy as np
import pytest
import torch
from monai.transforms import (
    AdjustContrast,
    Affine,
    Flip,
    GaussianSmooth,
    RandBiasField,
    RandSimulateLowResolution,
    ScaleIntensity,
    ScaleIntensityFixedMean,
)
from monai.transforms.utils import Fourier
from scipy import interpolate, ndimage
from torch.nn import functional

from pipeline.config import SCHEMA, complete
from pipeline.mirrors import Mirror
from pipeline.nn.augment import Options, artefacts, augment, draws, intensity, read_options, spatial
from pipeline.nn.augment.axes import along_axis, is_flat
from pipeline.nn.augment.draws import per_item

SHAPES = [(3, 2, 9, 12, 13), (3, 2, 11, 13), (3, 2, 4, 17, 15)]  # a volume, a slice, a flat volume
ALL = Options(elastic=True, artefacts=("bias_field", "ghosting", "motion"))
NNUNET = Options(elastic=False, artefacts=())


def make_batch(shape):
    """Image equal to its reference in every channel, so that a spatial change shows whether both moved alike."""
    torch.manual_seed(0)
    reference = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.int16)
    reference[(..., *(slice(edge // 4, 1 + 3 * edge // 4) for edge in shape[2:]))] = 1
    return reference.float().expand(shape).clone(), reference


def random_items(shape):
    """(N, …), one item per channel."""
    torch.manual_seed(3)
    return torch.randn(shape).flatten(0, 1)


def assert_close(ours, theirs, tolerance=1e-5):
    theirs = torch.stack(theirs) if isinstance(theirs, list) else torch.as_tensor(theirs)
    assert torch.allclose(ours, theirs.to(ours.dtype), rtol=0, atol=tolerance), float((ours - theirs).abs().max())


# The whole


@pytest.mark.parametrize("shape", SHAPES)
def test_augmenting_keeps_shape_type_and_labels_and_leaves_the_input_alone(shape):
    image, reference = make_batch(shape)
    before = image.clone(), reference.clone()
    for seed in range(10):
        torch.manual_seed(seed)
        changed, labels = augment(image, reference, ALL, [Mirror(0), Mirror(1)])
        assert (changed.shape, changed.dtype) == (image.shape, image.dtype)
        assert (labels.shape, labels.dtype) == (reference.shape, reference.dtype)
        assert torch.isfinite(changed).all()
        assert set(labels.unique().tolist()) <= {0, 1}
    assert torch.equal(image, before[0])
    assert torch.equal(reference, before[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(shape):
    image, reference = make_batch((8, *shape[1:]))
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        results.append(augment(image, reference, ALL, [Mirror(0)]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[2][0])


def test_equal_samples_become_different_ones():
    torch.manual_seed(0)
    image = torch.randn(1, 1, 8, 9, 10).expand(40, 1, 8, 9, 10)
    changed, _ = augment(image, torch.zeros(40, 1, 8, 9, 10, dtype=torch.int16), ALL, [])
    distinct = {tuple(sample.flatten().tolist()) for sample in changed}
    assert len(distinct) > 25, "about one in six stays as it is; no two others are alike"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_constant_patch_stays_finite(shape):
    for seed in range(20):
        torch.manual_seed(seed)
        changed, _ = augment(torch.zeros(shape), torch.zeros(shape[0], 1, *shape[2:], dtype=torch.int16), ALL, [])
        assert torch.isfinite(changed).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_it_makes_no_difference_how_many_samples_are_changed_at_once(shape, monkeypatch):
    image, reference = make_batch((12, *shape[1:]))
    monkeypatch.setattr(intensity, "add_noise", lambda items, sigma: items * per_item(sigma, items))
    results = []
    for voxels in (1, 3 * image[0].numel(), draws.CACHED_VOXELS):
        monkeypatch.setattr(draws, "CACHED_VOXELS", voxels)
        torch.manual_seed(1)
        results.append(augment(image, reference, ALL, [Mirror(0)]))
    for changed, labels in results[1:]:
        assert_close(changed, results[0][0])
        assert torch.equal(labels, results[0][1])


def test_options_come_from_the_train_section():
    config = complete({"name": "a", "cohort": "demo", "train": {"artefacts": ["motion"]}})
    assert read_options(config["train"]) == Options(elastic=True, artefacts=("motion",))
    known = SCHEMA["properties"]["train"]["properties"]["artefacts"]["items"]["enum"]
    assert list(artefacts.ARTEFACTS) == known


# How often


def calls_of(monkeypatch, module, name):
    """The arguments of each call of a function, which then does nothing."""
    calls = []

    def record(items, *parameters, **_):
        calls.append((len(items), *parameters))
        return items

    monkeypatch.setattr(module, name, record)
    return calls


def assert_probability(count, of, probability):
    """Within five standard deviations of a binomial distribution: once in two million runs wrong, and the seed is fixed."""
    assert abs(count - of * probability) < 5 * math.sqrt(of * probability * (1 - probability)), count / of


@pytest.mark.parametrize(
    ("name", "probability", "low", "high"),
    [
        ("blur", 0.2 * 0.5, 0.5, 1.0),
        ("brighten", 0.15, 0.75, 1.25),
        ("stretch", 0.15, 0.75, 1.25),
        ("coarsen", 0.25 * 0.5, 0.5, 1.0),
        ("bend_inverted", 0.1, 0.7, 1.5),
        ("bend", 0.3, 0.7, 1.5),
    ],
)
def test_intensities_change_as_often_and_as_much_as_in_nnunet(monkeypatch, name, probability, low, high):
    calls = calls_of(monkeypatch, intensity, name)
    torch.manual_seed(0)
    intensity.change_intensity(torch.zeros(4000, 2, 2, 2))
    count, parameter = calls[-1]  # gamma comes after inverted gamma, which calls it too
    assert_probability(count, 8000, probability)
    assert low <= parameter.min() < low + 0.01
    assert high - 0.01 < parameter.max() <= high


def test_noise_comes_to_one_sample_in_ten_with_an_even_variance(monkeypatch):
    calls = calls_of(monkeypatch, intensity, "add_noise")
    torch.manual_seed(0)
    intensity.change_intensity(torch.zeros(20000, 1, 2, 2))
    ((count, sigma),) = calls
    assert_probability(count, 20000, 0.1)
    assert sigma.max() <= math.sqrt(0.1)
    assert_probability(int((sigma**2 < 0.05).sum()), count, 0.5)


def test_channels_of_a_sample_are_blurred_apart_and_inverted_gamma_comes_first(monkeypatch):
    order = []
    for name in ("add_noise", "blur", "brighten", "stretch", "coarsen", "bend_inverted", "bend"):
        monkeypatch.setattr(
            intensity, name, lambda items, *_, name=name: order.append(name) or items + (name == "blur")
        )
    torch.manual_seed(0)
    image = torch.zeros(400, 2, 2, 2)
    intensity.change_intensity(image)
    assert order == ["add_noise", "blur", "brighten", "stretch", "coarsen", "bend_inverted", "bend"]
    channels = image[:, :, 0, 0].sum(0), (image[:, :, 0, 0].sum(1) == 2).sum()
    assert_probability(int(channels[0][0]), 400, 0.1)
    assert_probability(int(channels[1]), 400, 0.2 * 0.25)


def test_gamma_is_as_often_below_one_as_above(monkeypatch):
    calls = calls_of(monkeypatch, intensity, "bend")
    torch.manual_seed(0)
    intensity.change_intensity(torch.zeros(8000, 1, 2, 2))
    count, gamma = calls[-1]
    assert_probability(int((gamma < 1).sum()), count, 0.5)


@pytest.mark.parametrize("is_elastic", [False, True])
def test_rotation_scale_and_elastic_deformation_are_drawn_apart(monkeypatch, is_elastic):
    seen = []
    monkeypatch.setattr(spatial, "warp", lambda image, reference, *drawn: seen.append(drawn) or (image, reference))
    torch.manual_seed(0)
    count = 4000
    spatial.deform(torch.zeros(count, 1, 3, 3, 3), torch.zeros(count, 1, 3, 3, 3), is_elastic=is_elastic)
    ((matrices, shifts),) = seen
    assert_probability(len(matrices), count, 1 - 0.8 ** (2 + is_elastic))
    scale = torch.linalg.det(matrices) ** (1 / 3)
    is_scaled = (scale - 1).abs() > 1e-4
    assert_probability(int(is_scaled.sum()), count, 0.2)
    assert 0.7 <= scale.min() < 0.72
    assert 1.38 < scale.max() <= 1.4 + 1e-5
    turns = matrices / scale[:, None, None]
    is_turned = (turns - torch.eye(3)).abs().amax((1, 2)) > 1e-4
    assert_probability(int(is_turned.sum()), count, 0.2)
    assert_probability(int((is_turned & is_scaled).sum()), count, 0.04)
    if is_elastic:
        assert_probability(int((shifts != 0).flatten(1).any(1).sum()), count, 0.2)
    else:
        assert shifts is None


@pytest.mark.parametrize(
    ("name", "change", "probability", "groups"),
    [
        ("bias_field", "multiply_by_field", 0.2, 1),
        ("ghosting", "add_ghosts", 0.1, 3),
        ("motion", "move", 0.1, 3),
    ],
)
def test_artefacts_are_drawn_on_their_own_share_and_along_any_axis(monkeypatch, name, change, probability, groups):
    calls = calls_of(monkeypatch, artefacts, change)
    torch.manual_seed(0)
    artefacts.ARTEFACTS[name](torch.zeros(6000, 1, 2, 2, 2))
    assert len(calls) == groups
    assert_probability(sum(call[0] for call in calls), 6000, probability)


def test_no_artefact_comes_unasked(monkeypatch):
    calls = [calls_of(monkeypatch, artefacts, name) for name in ("multiply_by_field", "add_ghosts", "move")]
    augment(torch.randn(64, 1, 6, 6), torch.zeros(64, 1, 6, 6, dtype=torch.int16), NNUNET, [])
    assert calls == [[], [], []]


# Space


def rotation_and_scale(dims):
    angles = torch.tensor([[0.3, -0.2, 0.5], [-0.5, 0.4, 0.1], [0, 0, 0.2]])[:, -3 if dims == 3 else -1 :]
    return spatial.rotations(angles) * torch.tensor([0.75, 1.3, 1.0])[:, None, None]


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_turning_and_scaling_agree_with_monai(shape):
    torch.manual_seed(0)
    image, reference = torch.randn(shape), torch.randint(5, (shape[0], 1, *shape[2:]), dtype=torch.int16)
    matrices = rotation_and_scale(len(shape) - 2)
    ours, labels = spatial.warp(image, reference, matrices)
    for index, matrix in enumerate(matrices):
        affine = torch.eye(len(shape) - 1)
        affine[:-1, :-1] = matrix
        options = dict(affine=affine, padding_mode="zeros", image_only=True)
        assert_close(ours[index], Affine(mode="bilinear", **options)(image[index]), 1e-4)
        nearest = Affine(mode="nearest", **options)(reference[index].float())
        assert (labels[index] == nearest).float().mean() > 0.995, "but for voxels half way between two"


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_turning_goes_as_monai_names_the_axes(shape):
    """But for the sign about the middle one, which MONAI turns from the third axis to the first."""
    angles, monais = ([[0.3, -0.2, 0.5]], (0.3, 0.2, 0.5)) if len(shape) == 5 else ([[0.5]], 0.5)
    image = torch.randn(1, *shape[1:])
    ours, _ = spatial.warp(image, image, spatial.rotations(torch.tensor(angles)))
    assert_close(ours[0], Affine(rotate_params=monais, padding_mode="zeros", image_only=True)(image[0]), 1e-4)


def test_sampling_slice_by_slice_agrees_with_torchs_sampling_of_volumes():
    """Positions of some 1000 rows are known to 1e-4 of a voxel in float32, and neighbours differ by up to 8 here."""
    torch.manual_seed(0)
    shape = torch.tensor([16, 56, 40])
    image = torch.randn(2, 3, *shape)
    positions = torch.rand(2, 3, *shape) * (shape + 8).view(3, 1, 1, 1) - 4
    grid = ((2 * positions + 1) / shape.view(3, 1, 1, 1) - 1).flip(1).movedim(1, -1)
    theirs = functional.grid_sample(image, grid, padding_mode="zeros", align_corners=False)
    assert_close(spatial.sample(image, positions, "bilinear"), theirs, 1e-3)
    nearest = functional.grid_sample(image, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    ours = spatial.sample(image, positions, "nearest")
    assert (ours == nearest).float().mean() > 0.9999


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_elastic_deformation_samples_where_it_says_as_scipy_does(shape):
    torch.manual_seed(0)
    image = torch.randn(shape)
    dims = len(shape) - 2
    shifts = torch.rand(shape[0], dims, *(spatial.CONTROL_POINTS,) * dims) * 0.8 - 0.4
    matrices = rotation_and_scale(dims)
    ours, _ = spatial.warp(image, torch.zeros(shape[0], 1, *shape[2:], dtype=torch.int16), matrices, shifts)
    positions = spatial.source_positions(image, matrices, shifts)
    for item, position, warped in zip(image, positions, ours, strict=True):
        theirs = [ndimage.map_coordinates(channel, position, order=1, mode="grid-constant") for channel in item]
        assert_close(warped, np.stack(theirs), 1e-4)


def test_the_spline_is_a_uniform_cubic_b_spline_that_keeps_constants_and_lines():
    edge, spans = 13, spatial.CONTROL_POINTS - 3
    weights = spatial.spline_weights(edge, torch.device("cpu"))
    position = (np.arange(edge) + 0.5) * spans / edge
    knots = np.arange(-3, spans + 4)
    assert_close(weights, interpolate.BSpline.design_matrix(position, knots, 3).toarray())
    assert_close(weights.sum(1), torch.ones(edge))
    assert_close(weights @ torch.arange(-1.0, spans + 2), position)


def test_an_elastic_deformation_never_folds():
    torch.manual_seed(0)
    image = torch.zeros(40, 1, 16, 20, 24)
    extreme = spatial.MAX_SHIFT * (torch.randint(2, (40, 3, *(spatial.CONTROL_POINTS,) * 3)) * 2.0 - 1)
    positions = spatial.source_positions(image, torch.eye(3).repeat(40, 1, 1), extreme)
    steps = [positions.diff(dim=axis + 2)[:, :, :15, :19, :23] for axis in range(3)]
    jacobian = torch.linalg.det(torch.stack(steps, dim=-1).movedim(1, -2))
    assert jacobian.min() > 0
    assert (positions - spatial.source_positions(image, torch.eye(3).repeat(40, 1, 1))).abs().max() > 1


@pytest.mark.parametrize("shape", SHAPES)
def test_image_and_reference_move_together(shape, monkeypatch):
    for name in ("ROTATION_PROBABILITY", "SCALE_PROBABILITY", "ELASTIC_PROBABILITY"):
        monkeypatch.setattr(spatial, name, 1.0)
    image, reference = make_batch((6, *shape[1:]))
    moved_image, moved_reference = image.clone(), reference.clone()
    spatial.deform(moved_image, moved_reference, is_elastic=True)
    spatial.mirror(moved_image, moved_reference, [Mirror(0), Mirror(1)])
    assert not torch.equal(moved_reference, reference)
    assert ((moved_image > 0.5) == moved_reference).float().mean() > 0.95


def test_a_warped_reference_keeps_any_integer_and_gets_background_from_outside():
    reference = torch.tensor([-1, 0, 3, 255, 65535], dtype=torch.int32)[torch.randint(5, (2, 1, 9, 10, 11))]
    image = torch.ones(2, 1, 9, 10, 11)
    warped_image, warped = spatial.warp(image, reference, 1.4 * torch.eye(3).repeat(2, 1, 1))
    assert set(warped.unique().tolist()) == {-1, 0, 3, 255, 65535}
    assert (warped[:, :, 0] == 0).all()
    assert_close(warped_image[:, :, 0], torch.zeros(2, 1, 10, 11), 1e-4)


def test_a_reference_of_values_is_interpolated_as_the_image_is():
    image = torch.randn(3, 1, 9, 10, 11)
    ours, reference = spatial.warp(image, image, rotation_and_scale(3))
    assert torch.equal(ours, reference)


def test_a_rotation_turns_voxels_without_shearing_a_patch_of_unequal_edges():
    torch.manual_seed(1)
    image = torch.zeros(20, 1, 12, 40, 20)
    positions = spatial.source_positions(image, spatial.rotations(torch.rand(20, 3)))
    distance = (positions[:, :, 1, 35, 2] - positions[:, :, 10, 4, 18]).norm(dim=1)
    assert_close(distance, torch.tensor([9.0, 31, 16]).norm().expand(20), 1e-4)


@pytest.mark.parametrize("shape", [(4, 1, 4, 17, 15), (4, 2, 5, 16, 16)])
def test_a_flat_patch_turns_within_its_slices_all_of_them_alike(shape, monkeypatch):
    monkeypatch.setattr(spatial, "ROTATION_PROBABILITY", 1.0)
    torch.manual_seed(0)
    image = torch.randn(shape[0], shape[1], 1, *shape[3:]).expand(shape).clone()
    image *= torch.arange(1.0, shape[2] + 1).view(-1, 1, 1)
    reference = image[:, :1].clone().to(torch.int16)
    before = image.clone()
    spatial.deform(image, reference, is_elastic=True)
    assert not torch.allclose(image, before)
    for depth in range(shape[2]):
        assert_close(image[:, :, depth] / (depth + 1), image[:, :, 0], 1e-5)


def test_how_far_a_patch_may_turn_depends_on_its_shape():
    degrees = [
        math.degrees(spatial.largest_angle(shape)) for shape in [(40, 56, 40), (20, 320, 256), (56, 40), (64, 32)]
    ]
    assert degrees == pytest.approx([30, 180, 180, 15])
    assert [is_flat(shape) for shape in [(16, 48, 48), (16, 49, 48), (16, 49)]] == [False, True, False]


# Mirrors


def test_only_the_named_axes_are_mirrored_half_of_the_time_as_monai_does():
    image = torch.arange(24.0).view(1, 1, 2, 3, 4).repeat(400, 1, 1, 1, 1)
    reference, before = image.to(torch.int16), image[0].clone()
    torch.manual_seed(0)
    spatial.mirror(image, reference, [Mirror(2)])
    is_flipped = image[:, 0, 0, 0, 0] == 3
    assert_probability(int(is_flipped.sum()), 400, 0.5)
    flipped = Flip(spatial_axis=2)(before)
    assert all(torch.equal(sample, flipped if flip else before) for sample, flip in zip(image, is_flipped, strict=True))
    assert torch.equal(reference.float(), image)


def test_a_flipped_sample_has_its_classes_swapped_and_an_unflipped_one_has_not():
    reference = torch.tensor([0, 1, 2, 3, -1], dtype=torch.int16).view(1, 1, 5, 1).repeat(100, 1, 1, 3)
    image = reference.float()
    torch.manual_seed(0)
    spatial.mirror(image, reference, [Mirror(0, swaps=((1, 2),))])
    rows = {tuple(row.tolist()) for row in reference[:, 0, :, 0]}
    assert rows == {(0, 1, 2, 3, -1), (-1, 3, 1, 2, 0)}
    assert {tuple(row.tolist()) for row in image[:, 0, :, 0]} == {(0, 1, 2, 3, -1), (-1, 3, 2, 1, 0)}


def test_without_mirrors_nothing_is_flipped():
    image, reference = make_batch(SHAPES[0])
    before = image.clone()
    spatial.mirror(image, reference, [])
    assert torch.equal(image, before)


# Intensity


@pytest.mark.parametrize("shape", SHAPES)
def test_blurring_agrees_with_scipy_and_inside_with_monai(shape):
    items = random_items((3, 1, *(edge + 8 for edge in shape[2:])))
    sigma = torch.tensor([[0.5, 0.8, 1.0], [1.0, 1.0, 1.0], [0.6, 0.9, 0.7]])[:, : items.ndim - 1]
    ours = intensity.blur(items, sigma)
    inside = (slice(None), *(slice(4, -4),) * (items.ndim - 1))
    for item, wanted, blurred in zip(items, sigma.tolist(), ours, strict=True):
        assert_close(blurred, ndimage.gaussian_filter(item.numpy(), wanted, mode="nearest", radius=4))
        monai = GaussianSmooth(sigma=wanted, approx="sampled")(item[None])
        # MONAI's samples of a Gaussian do not sum to one, and end at four of its sigmas instead of four voxels
        gain = GaussianSmooth(sigma=wanted, approx="sampled")(torch.ones_like(item[None]))
        assert_close(blurred[None][inside], (monai / gain)[inside], 1e-4)


def test_blurring_keeps_a_constant_up_to_its_edges():
    assert_close(intensity.blur(torch.full((2, 5, 6, 7), 3.0), torch.ones(2, 3)), torch.full((2, 5, 6, 7), 3.0))


@pytest.mark.parametrize("shape", SHAPES[:2])
@pytest.mark.parametrize("zoom", [0.5, 0.62, 0.87, 1.0])
def test_low_resolution_agrees_with_monai(shape, zoom):
    items = random_items(shape)
    linear = "trilinear" if len(shape) == 5 else "bilinear"
    monai = RandSimulateLowResolution(
        prob=1, downsample_mode="nearest-exact", upsample_mode=linear, zoom_range=(zoom, zoom)
    )
    ours = intensity.coarsen(items, torch.full((len(items),), zoom))
    assert_close(ours, [monai(item[None])[0] for item in items])


def test_low_resolution_of_a_flat_patch_keeps_its_slices_and_every_item_has_its_own_zoom():
    items = random_items(SHAPES[2])
    zoom = torch.linspace(0.5, 1, len(items))
    ours = intensity.coarsen(items, zoom)
    alone = [intensity.coarsen(item[None, 2], zoom[index : index + 1])[0] for index, item in enumerate(items)]
    assert_close(ours[:, 2], alone)
    assert_close(ours[-1], items[-1])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_inverted", [False, True])
def test_gamma_agrees_with_monai_and_keeps_mean_and_deviation(shape, is_inverted):
    items = random_items(shape)
    gamma = torch.linspace(0.7, 1.5, len(items))
    ours = (intensity.bend_inverted if is_inverted else intensity.bend)(items, gamma)
    monai = [
        AdjustContrast(factor, invert_image=is_inverted, retain_stats=True)(item)
        for item, factor in zip(items, gamma.tolist(), strict=True)
    ]
    assert_close(ours, monai)
    assert_close(ours.flatten(1).mean(1), items.flatten(1).mean(1))
    assert_close(ours.flatten(1).std(1), items.flatten(1).std(1))
    assert not torch.allclose(ours, items)


@pytest.mark.parametrize("shape", SHAPES)
def test_contrast_agrees_with_monai_and_keeps_the_range(shape):
    items = random_items(shape)
    factors = torch.linspace(0.75, 1.25, len(items))
    ours = intensity.stretch(items, factors)
    monai = [
        ScaleIntensityFixedMean(factor=factor - 1, preserve_range=True, fixed_mean=True)(item[None])[0]
        for item, factor in zip(items, factors.tolist(), strict=True)
    ]
    assert_close(ours, monai)
    assert (ours.flatten(1).amax(1) <= items.flatten(1).amax(1)).all()


def test_brightness_agrees_with_monai():
    items, factors = random_items(SHAPES[0]), torch.linspace(0.75, 1.25, 6)
    monai = [
        ScaleIntensity(None, None, factor=float(factor) - 1)(item) for item, factor in zip(items, factors, strict=True)
    ]
    assert_close(intensity.brighten(items, factors), monai)


def test_noise_has_the_deviation_that_was_drawn_in_every_channel():
    torch.manual_seed(0)
    image = torch.full((3, 2, 40, 40, 40), 5.0)
    sigma = torch.tensor([0.0, 0.1, 0.3])
    noise = intensity.add_noise(image, sigma) - 5
    assert_close(noise.flatten(2).std(2), sigma[:, None].expand(3, 2), 0.005)
    assert_close(noise.flatten(2).mean(2), torch.zeros(3, 2), 0.005)
    assert not torch.equal(noise[2, 0], noise[2, 1])


# Artefacts of MR


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_the_bias_field_agrees_with_monai(shape):
    image = torch.rand(shape)
    image -= image.amin(dim=tuple(range(2, image.ndim)), keepdim=True)  # MONAI multiplies what it gets
    dims = len(shape) - 2
    monai = RandBiasField(degree=3, prob=1)
    monai._do_transform = True
    values = torch.zeros(shape[0], *(4,) * dims)
    theirs = []
    for index in range(shape[0]):
        monai._coeff = np.random.default_rng(index).uniform(-0.3, 0.3, 20 if dims == 3 else 10).tolist()
        degrees = [place for place in np.ndindex(values.shape[1:]) if sum(place) <= 3]
        if dims == 2:  # MONAI fills the lower triangle of the matrix, degrees up to six
            degrees = list(zip(*np.tril_indices(4), strict=True))
        for place, coefficient in zip(degrees, monai._coeff, strict=True):
            values[(index, *place)] = coefficient
        theirs.append(monai(image[index], randomize=False))
    assert_close(artefacts.multiply_by_field(image, values), theirs)


def test_a_bias_field_leaves_the_darkest_voxel_of_every_channel_as_it_is():
    image = torch.randn(4, 2, 9, 10, 11)
    changed = artefacts.multiply_by_field(image, torch.rand(4, 4, 4, 4) * 0.4 - 0.2)
    assert_close(changed.flatten(2).amin(2), image.flatten(2).amin(2))


def in_kspace(image, weights, axis):
    """numpy's and MONAI's way: the whole spectrum, weighed along one axis."""
    spectrum = Fourier.shift_fourier(image, image.ndim - 1)
    along = [1] * image.ndim
    along[axis + 1] = -1
    return Fourier.inv_shift_fourier(spectrum * weights.view(along), image.ndim - 1)


@pytest.mark.parametrize("shape", [*SHAPES[:2], (3, 2, 40, 12)])
@pytest.mark.parametrize("axis", [0, 1])
def test_ghosts_agree_with_weakened_lines_of_monais_kspace(shape, axis):
    image = torch.randn(shape)
    num_ghosts, strength = torch.tensor([4, 5, 10]), torch.tensor([0.5, 1.0, 0.7])
    ours = artefacts.add_ghosts(image, num_ghosts, strength, axis=axis)
    edge = shape[axis + 2]
    for index in range(shape[0]):
        weights = torch.ones(edge)
        weights[:: int(num_ghosts[index])] -= strength[index]
        weights[edge // 2] = 1
        assert_close(ours[index], in_kspace(image[index], weights, axis))
    assert_close(ours.flatten(2).mean(2), image.flatten(2).mean(2))


def test_motion_fills_kspace_from_one_pose_after_another_and_the_centre_from_the_references():
    torch.manual_seed(0)
    image = torch.randn(3, 2, 9, 12, 13)
    times = torch.tensor([[0.2, 0.7], [0.6, 0.8], [0.1, 0.3]])
    still = [1, 0, 2]  # the stretch that holds line 6 of 12, half of the time
    matrices = spatial.rotations(torch.rand(6, 3) * 0.2).unflatten(0, (3, 2))
    offsets = torch.rand(3, 2, 3) * 2 - 1
    ours = artefacts.move(image, times, matrices, offsets, axis=1)
    for index in range(3):
        poses = []
        for matrix, offset in zip(matrices[index], offsets[index], strict=True):
            affine = torch.eye(4)
            affine[:3, :3], affine[:3, 3] = matrix, offset
            poses.append(Affine(affine=affine, padding_mode="zeros", image_only=True)(image[index]))
        poses.insert(still[index], image[index])
        moment = torch.arange(12) / 12
        bounds = [-1.0, *times[index].tolist(), 2.0]
        expected = sum(
            in_kspace(pose, ((moment >= bounds[number]) & (moment < bounds[number + 1])).float(), 1)
            for number, pose in enumerate(poses)
        )
        assert_close(ours[index], expected, 1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_artefact_changes_some_samples_and_only_those(shape):
    torch.manual_seed(0)
    image = torch.randn(60, *shape[1:])
    for name in ALL.artefacts:
        changed = image.clone()
        artefacts.ARTEFACTS[name](changed)
        share = (changed != image).flatten(1).any(1).float().mean()
        assert 0 < share < 0.5, name


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_matrix_works_along_its_axis_as_einsum_says(axis):
    values, matrices = torch.randn(3, 4, 5, 6), torch.randn(3, 7, 4 + axis)
    letters = "bcd"
    expected = torch.einsum(f"a{letters},ae{letters[axis]}->a{letters.replace(letters[axis], 'e')}", values, matrices)
    assert_close(along_axis(values, matrices, axis), expected)
