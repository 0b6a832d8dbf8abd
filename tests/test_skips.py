"""Skip connections are found without knowing the network, judged rightly, and looking changes nothing."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline import records
from pipeline.nn.forms import Form
from pipeline.nn.networks import build_network
from pipeline.nn.skips import skip_rows, verdict
from tests.test_networks import batch_of, tiny_plan
from tests.test_preprocess import make_plan

FORM = Form(torch.float32, torch.contiguous_format)


class TinyUNet(nn.Module):
    """One skip of four channels, which joins the way up by concatenation or by a sum."""

    def __init__(self, is_sum):
        super().__init__()
        self.is_sum = is_sum
        self.fine, self.side = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.coarse = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.residual = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Conv2d(4 if is_sum else 8, 3, 1)

    def forward(self, image):
        fine = self.fine(image)
        skip = self.side(fine)
        coarse = self.coarse(fine)
        coarse = coarse + self.residual(coarse)
        up = functional.interpolate(coarse, scale_factor=2)
        return self.head(skip + up if self.is_sum else torch.cat([up, skip], dim=1))


def tiny(is_sum=False):
    torch.manual_seed(0)
    return TinyUNet(is_sum), torch.randn(2, 1, 8, 12)


@pytest.mark.parametrize("is_sum", [False, True])
def test_the_one_skip_of_a_tiny_network_is_found_and_alive(is_sum):
    network, image = tiny(is_sum)
    (row,) = skip_rows(network, image, FORM)
    assert tuple(row) == records.SKIPS
    assert row["skip"] == "1: 8 x 12"
    assert (row["channels"], row["dead_channels"], row["verdict"]) == (4, 0, "alive")
    assert row["effect"] > 0.1


@pytest.mark.parametrize("is_sum", [False, True])
def test_a_skip_that_carries_nothing_is_dead(is_sum):
    network, image = tiny(is_sum)
    nn.init.zeros_(network.side.weight)
    nn.init.zeros_(network.side.bias)
    (row,) = skip_rows(network, image, FORM)
    assert (row["dead_channels"], row["mean_abs"], row["effect"], row["verdict"]) == (4, 0, 0, "dead")


def test_a_channel_that_is_the_same_everywhere_is_counted_as_dead_though_it_is_not_zero():
    network, image = tiny()
    nn.init.zeros_(network.side.weight[1])
    (row,) = skip_rows(network, image, FORM)
    assert (row["dead_channels"], row["verdict"]) == (1, "alive")


def test_a_skip_that_the_decoder_does_not_read_is_silent():
    network, image = tiny()
    nn.init.zeros_(network.head.weight[:, 4:])
    (row,) = skip_rows(network, image, FORM)
    assert (row["effect"], row["verdict"]) == (0, "silent")


@pytest.mark.parametrize(("dead", "effect", "expected"), [(4, 1, "dead"), (3, 0.02, "alive"), (0, 0.009, "silent")])
def test_the_verdict_follows_channels_and_effect(dead, effect, expected):
    assert verdict(channels=4, dead_channels=dead, effect=effect) == expected


def test_the_effect_is_what_zeroing_the_skip_does_to_the_logits():
    network, image = tiny()
    (row,) = skip_rows(network, image, FORM)
    with torch.no_grad():
        logits = network(image)
        network.side.weight.zero_()
        network.side.bias.zero_()
        expected = (network(image) - logits).norm() / logits.norm()
    assert row["effect"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("network", "per_resolution"),
    [
        ("unet", [1, 1]),
        ("residual_unet", [1, 1]),
        ("classic_unet", [1]),  # cropped on its way
        ("attention_unet", [1, 1]),  # gated
        ("unet_plus_plus", [10, 6, 3, 1]),  # each connection of the nest
        ("segresnet", [1, 1, 1]),  # summed
        ("swin_unetr", [1, 1, 1, 1, 1]),
        ("unetr", [1, 1, 1, 1]),
        ("backbone_unet", [1, 1, 1, 1]),
        ("fcn", []),
    ],
)
def test_the_skips_of_every_network_are_found(network, per_resolution):
    plan = tiny_plan(network, 2)
    torch.manual_seed(0)
    rows = skip_rows(build_network(plan, 4), batch_of(plan), FORM)
    resolutions = [row["skip"].split(": ")[1] for row in rows]
    assert [resolutions.count(resolution) for resolution in dict.fromkeys(resolutions)] == per_resolution


def test_a_skip_that_is_cropped_on_its_way_is_still_one():
    class Cropped(nn.Module):
        def forward(self, image):
            return torch.cat([image[..., 1:-1, 1:-1].relu().narrow(2, 0, 6), image.relu()[..., 1:-1, 1:-1]], dim=1)

    class Late(nn.Module):
        def forward(self, image):
            skip = image * 2
            up = functional.interpolate(functional.avg_pool2d(skip, 2), scale_factor=2)
            return torch.cat([skip.narrow(2, 1, 6), up.narrow(2, 1, 6)], dim=1)

    image = torch.randn(1, 2, 8, 12)
    assert [row["skip"] for row in skip_rows(Late(), image, FORM)] == ["1: 6 x 12"]
    assert skip_rows(Cropped(), image, FORM) == []


def test_a_map_pooled_to_one_voxel_is_no_coarser_resolution():
    class Gate(nn.Module):
        def forward(self, image):
            return image + image.relu() * image.relu().mean(dim=(2, 3), keepdim=True)

    assert skip_rows(Gate(), torch.randn(1, 2, 8, 12), FORM) == []


@pytest.mark.parametrize("plan", [make_plan(), tiny_plan("unet", 2)], ids=["3d", "2d"])
def test_looking_leaves_weights_mode_and_random_state_as_they_were(plan):
    torch.manual_seed(0)
    network = build_network(plan, 4).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    image = torch.ones(2, len(plan.channels), *plan.patch_size)
    skip_rows(network, image, FORM)
    assert torch.equal(torch.get_rng_state(), state) and (image == 1).all()
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(weight.grad is None for weight in network.parameters())
