import pytest
import torch

from pipeline.nn import augment as module
from pipeline.nn.augment import augment, bend, blur, change_intensity, deform, mirror, stretch

SHAPES = [(3, 2, 12, 16, 20), (3, 2, 16, 20)]


def make_batch(shape):
    """Image equal to its reference in the first channel, so that a spatial change shows whether both moved alike."""
    torch.manual_seed(0)
    reference = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.int16)
    reference[(..., *(slice(4, 10),) * (len(shape) - 2))] = 1
    return reference.float().expand(shape).clone(), reference


@pytest.mark.parametrize("shape", SHAPES)
def test_image_and_reference_move_together(shape, monkeypatch):
    monkeypatch.setattr(module, "SPATIAL_PROBABILITY", 1.0)
    image, reference = make_batch(shape)
    moved_image, moved_reference = mirror(*deform(image, reference), axes=[0, 1])
    assert not torch.equal(moved_reference, reference)
    assert (moved_image[:, :1].round() == moved_reference).float().mean() > 0.99


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_seed_gives_the_same_bytes(shape):
    image, reference = make_batch(shape)
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(augment(image, reference, [0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("shape", SHAPES)
def test_augmenting_keeps_shape_type_and_labels_and_leaves_the_input_alone(shape):
    image, reference = make_batch(shape)
    before = image.clone(), reference.clone()
    for seed in range(10):
        torch.manual_seed(seed)
        changed, labels = augment(image, reference, [0, 1])
        assert changed.shape == image.shape
        assert torch.isfinite(changed).all()
        assert labels.dtype == reference.dtype
        assert set(labels.unique().tolist()) <= {0, 1}
    assert torch.equal(image, before[0])
    assert torch.equal(reference, before[1])


def test_only_the_named_axes_are_mirrored():
    image = torch.arange(24.0).view(1, 1, 2, 3, 4).expand(64, 1, 2, 3, 4)
    torch.manual_seed(0)
    mirrored, _ = mirror(image, image.to(torch.int16), axes=[2])
    assert {tuple(row.tolist()) for row in mirrored[:, 0, 0, 0]} == {(0, 1, 2, 3), (3, 2, 1, 0)}
    assert torch.equal(mirror(image, image.to(torch.int16), axes=[])[0], image)


@pytest.mark.parametrize("shape", SHAPES)
def test_gamma_keeps_mean_and_deviation(shape):
    image = torch.randn(shape)
    bent = bend(image)
    axes = tuple(range(2, image.ndim))
    assert torch.allclose(bent.mean(axes), image.mean(axes), atol=1e-4)
    assert torch.allclose(bent.std(axes), image.std(axes), atol=1e-4)
    assert not torch.allclose(bent, image)


@pytest.mark.parametrize("shape", SHAPES)
def test_contrast_keeps_the_range_and_blur_keeps_a_constant(shape):
    image = torch.randn(shape)
    assert stretch(image).max() <= image.max()
    assert torch.allclose(blur(torch.full(shape, 3.0)), torch.full(shape, 3.0), atol=1e-5)
    assert blur(image).std() < image.std()


def test_intensity_changes_of_a_constant_patch_stay_finite():
    for seed in range(20):
        torch.manual_seed(seed)
        assert torch.isfinite(change_intensity(torch.zeros(4, 1, 8, 8, 8))).all()


def test_a_rotation_turns_voxels_without_shearing_a_patch_of_unequal_edges():
    torch.manual_seed(1)
    matrices = module._rotations(20, (12, 40, 20), torch.device("cpu"))
    identity = torch.eye(3).expand(20, 3, 3)
    assert torch.allclose(matrices @ matrices.transpose(1, 2), identity, atol=1e-5)


def test_a_flat_patch_turns_in_its_slices_only():
    matrices = module._rotations(20, (8, 40, 40), torch.device("cpu"))
    assert torch.allclose(matrices[:, 2], torch.tensor([0.0, 0, 1]).expand(20, 3))
