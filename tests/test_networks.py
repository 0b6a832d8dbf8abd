"""Every network by its name, in 2D and 3D: it accepts its patch, learns, and predicts the same once saved. Tiny throughout."""

import numpy as np
import pytest
import torch
from monai.networks.nets import FLEXUNET_BACKBONE
from torch import nn

from pipeline.architectures import ARCHITECTURES, ENCODERS, classic_margin, fit_architecture
from pipeline.nn.checkpoints import Model, load_model, save_model
from pipeline.nn.device import Device, channels_last
from pipeline.nn.forms import usual_form
from pipeline.nn.losses import make_loss
from pipeline.nn.networks import BUILDERS, build_network
from pipeline.nn.networks.classic import ClassicUNet, OverlapTile, margins, mirror
from pipeline.nn.networks.encoder_decoder import ResidualBlock
from pipeline.nn.networks.shallow import ShallowConv3d, secure
from pipeline.topology import topology
from tests.dense import predict_densely
from tests.test_plan import settings
from tests.test_preprocess import make_plan

CPU = Device(torch.device("cpu"), None)
WIDTH = 4
DEEPLY_SUPERVISED = {"unet", "residual_unet", "unet_plus_plus", "fcn"}
EVERY_NETWORK = pytest.mark.parametrize("network", ARCHITECTURES)
BOTH_DIMS = pytest.mark.parametrize("dims", [2, 3])


def tiny_plan(network, dims, **changes):
    """Two channels, three labels, an odd patch of unequal spacing as the network wants it."""
    fitted = topology((2.5, 1, 1)[-dims:], (16, 40, 20)[-dims:])
    fitted, _ = fit_architecture("tiny", settings(dims=dims, network=network), fitted)
    shape = dict(patch_size=fitted.patch_size, strides=fitted.strides, kernels=fitted.kernels)
    encoder = dict(encoder="densenet121", channels=("T1", "T2"), normalisation=("zscore", "zscore"))
    return make_plan(**{"dims": dims, "network": network, **shape, **encoder, **changes})


def batch_of(plan):
    torch.manual_seed(3)
    image = torch.randn(4 - plan.dims, len(plan.channels), *plan.patch_size)
    return image.to(memory_format=channels_last(plan.dims))


def test_every_name_has_its_builder():
    assert list(BUILDERS) == list(ARCHITECTURES)


@BOTH_DIMS
@EVERY_NETWORK
def test_a_network_learns_and_predicts_the_same_once_it_is_saved(tmp_path, network, dims):
    plan = tiny_plan(network, dims)
    torch.manual_seed(1)
    built = usual_form(CPU, dims).prepare(build_network(plan, WIDTH)).train()
    image = batch_of(plan)
    reference = (image[:, :1] > 0.5).to(torch.int16) + (image[:, 1:] > 1).to(torch.int16)
    measure = make_loss({"loss": "dice_ce", "class_weights": []}, plan)
    optimizer = torch.optim.AdamW(built.parameters(), lr=0.003)
    losses = []
    for _ in range(4):
        outputs = built(image)
        levels = outputs if isinstance(outputs, list) else [outputs]
        assert isinstance(outputs, list) == (network in DEEPLY_SUPERVISED)
        assert levels[0].shape == (len(image), 3, *plan.patch_size)
        sizes = [level[0, 0].numel() for level in levels]
        assert sizes == sorted(sizes, reverse=True), "finest first"
        loss = measure(outputs, reference)
        optimizer.zero_grad()
        loss.backward()
        assert [name for name, weight in built.named_parameters() if weight.grad is None] == []
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert built.eval()(image).shape == (len(image), 3, *plan.patch_size)

    save_model(tmp_path / "model.pt", built.state_dict(), WIDTH, plan)
    scan = np.random.default_rng(0).normal(size=(2, 3 if dims == 2 else 18, 44, 22)).astype(np.float32)
    models = (Model(built, plan, WIDTH), load_model(tmp_path / "model.pt", CPU.where))
    before, after = (predict_densely([model], scan, CPU, overlap=0.25) for model in models)
    assert before.shape == (3, *scan.shape[1:])
    assert np.array_equal(before, after)


@pytest.mark.parametrize("network", [name for name in ARCHITECTURES if not ARCHITECTURES[name].has_fixed_patch])
def test_a_network_without_a_fixed_patch_takes_any_multiple_of_its_strides(network):
    plan = tiny_plan(network, 2)
    image = torch.cat((batch_of(plan),) * 2, dim=2)
    assert build_network(plan, WIDTH).eval()(image).shape == (2, 3, *image.shape[2:])


@pytest.mark.parametrize("edge", [3, 5])
def test_weights_get_the_right_gradient_in_bfloat16_from_maps_shallower_than_their_kernel(edge):
    torch.manual_seed(0)
    convolution = secure(nn.Conv3d(32, 32, edge, padding=edge // 2))
    image = torch.randn(2, 32, 2, 4, 4)
    gradients = []
    for is_half in (False, True, True, True):
        convolution.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_half):
            convolution(image).square().mean().backward()
        gradients.append(convolution.weight.grad)
    assert all(torch.allclose(gradient, gradients[0], atol=1e-5) for gradient in gradients)


def test_every_3d_convolution_of_a_network_watches_its_depth():
    built = build_network(tiny_plan("backbone_unet", 3, encoder="efficientnet-b0"), WIDTH)
    assert {type(part) for part in built.modules() if isinstance(part, nn.Conv3d)} == {ShallowConv3d}


@EVERY_NETWORK
def test_dropout_drops_in_training_only(network):
    with_dropout, without = (tiny_plan(network, 2, dropout=share) for share in (0.5, 0.0))
    image = batch_of(with_dropout)
    for plan in (with_dropout, without):
        built = build_network(plan, WIDTH).train()
        first, second = (built(image) for _ in range(2))
        first, second = (outputs[0] if isinstance(outputs, list) else outputs for outputs in (first, second))
        assert torch.equal(first, second) == (plan is without)
    built = build_network(with_dropout, WIDTH).eval()
    assert torch.equal(built(image), built(image))


def test_dropout_never_drops_the_logits_themselves():
    plan = tiny_plan("unet", 2, dropout=0.5)
    assert all((level != 0).all() for level in build_network(plan, WIDTH).train()(batch_of(plan)))


@BOTH_DIMS
@pytest.mark.parametrize("network", ["unet", "residual_unet", "fcn"])
def test_deep_supervision_covers_every_resolution_but_the_coarsest(network, dims):
    plan = tiny_plan(network, dims)
    edges = np.array(plan.patch_size) // np.cumprod(plan.strides, axis=0)
    outputs = build_network(plan, WIDTH).train()(batch_of(plan))
    assert [level.shape[2:] for level in outputs] == [tuple(level) for level in edges[:-1]]


def test_a_residual_encoder_has_nnunets_blocks_which_start_as_their_shortcut():
    plan = tiny_plan(
        "residual_unet", 3, patch_size=(64,) * 3, strides=((1,) * 3, *((2,) * 3,) * 4), kernels=((3,) * 3,) * 5
    )
    built = build_network(plan, WIDTH)
    counts = [sum(isinstance(part, ResidualBlock) for part in stage.modules()) for stage in built.stages]
    assert counts == [1, 3, 4, 6, 6]
    block = built.stages[1][1].eval()
    image = torch.randn(1, 2 * WIDTH, 4, 4, 4)
    assert torch.equal(block(image), torch.nn.functional.leaky_relu(image, 0.01))


@pytest.mark.parametrize(
    ("num_stages", "shape", "expected"), [(5, (572, 572), (388, 388)), (4, (132, 132, 116), (44, 44, 28))]
)
def test_the_original_unet_gives_the_sizes_of_its_papers(num_stages, shape, expected):
    features = [2**stage for stage in range(num_stages)]
    bare = ClassicUNet(len(shape), 1, 2, features, is_padded=False, dropout=0).eval()
    with torch.inference_mode():
        assert bare(torch.zeros(1, 1, *shape)).shape == (1, 2, *expected)


@pytest.mark.parametrize("num_stages", [2, 3, 4, 5, 8])
def test_the_margin_of_any_edge_makes_every_pooling_even_and_covers_the_edge(num_stages):
    for edge in range(1, 70):
        size = edge + sum(margins(edge, num_stages))
        for _ in range(num_stages - 1):
            assert (size - 4) % 2 == 0
            size = (size - 4) // 2
        size -= 4
        for _ in range(num_stages - 1):
            size = 2 * size - 4
        assert 0 <= size - edge < max(2 ** (num_stages - 1), 4)


@pytest.mark.parametrize("edge", [1, 2, 5, 9])
def test_mirroring_goes_to_and_fro_where_the_margin_is_wider_than_the_image(edge):
    image = torch.randn(1, 1, edge, 3)
    expected = np.pad(image.numpy(), [(0, 0), (0, 0), (7, 11), (0, 0)], mode="reflect")
    assert np.array_equal(mirror(image, 2, 7, 11).numpy(), expected)


def test_the_logits_of_a_patch_are_those_of_its_mirrored_surroundings():
    bare = ClassicUNet(2, 1, 2, [2, 4, 8], is_padded=False, dropout=0).eval()
    image, margin = torch.randn(1, 1, 24, 28), classic_margin(3)
    surrounded = torch.nn.functional.pad(image, (margin,) * 4, mode="reflect")
    assert torch.equal(OverlapTile(bare)(image), bare(surrounded))


@BOTH_DIMS
def test_a_padded_classic_unet_has_batch_norm_and_no_margin(dims):
    patch = (16, 32, 16)[-dims:]
    shape = dict(patch_size=patch, strides=((1,) * dims, (2,) * dims, (2,) * dims), kernels=((3,) * dims,) * 3)
    built = build_network(tiny_plan("classic_unet", dims, is_padded=True, **shape), WIDTH)
    assert isinstance(built, ClassicUNet)
    assert built(torch.randn(2, 2, *patch)).shape == (2, 3, *patch)
    assert sum("BatchNorm" in type(part).__name__ for part in built.modules()) == 2 * (3 + 2)


@BOTH_DIMS
@pytest.mark.parametrize("encoder", ["resnet18", "resnext50", "se_resnext50", "efficientnet-b0"])
def test_every_family_of_encoders_makes_a_unet(encoder, dims):
    plan = tiny_plan("backbone_unet", dims, encoder=encoder)
    built = build_network(plan, WIDTH).eval()
    with torch.inference_mode():
        assert built(batch_of(plan)).shape[1:] == (3, *plan.patch_size)
    gates = [part for part in built.modules() if type(part).__name__ == "ChannelSELayer"]
    assert bool(gates) == (encoder == "se_resnext50")


def test_every_encoder_that_can_be_named_is_registered():
    assert set(ENCODERS) == FLEXUNET_BACKBONE.register_dict.keys()


@pytest.mark.parametrize("encoder", [name for name in ENCODERS if "next" in name or "dense" in name])
def test_the_encoders_of_ours_give_the_features_that_the_decoder_expects(encoder):
    with torch.device("meta"):  # shapes without numbers
        built = build_network(tiny_plan("backbone_unet", 2, encoder=encoder), WIDTH)
        assert built(torch.empty(2, 2, 64, 32)).shape == (2, 3, 64, 32)
