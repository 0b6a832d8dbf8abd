"""Skip connections are found without knowing the network, judged rightly, and looking changes nothing."""

import pytest
import torch
from monai.networks.nets import AttentionUnet, BasicUNetPlusPlus, SegResNet, UNet
from torch import nn
from torch.nn import functional

from pipeline import records
from pipeline.nn.device import Device
from pipeline.nn.networks import build_network
from pipeline.nn.skips import skip_rows, verdict
from tests.test_preprocess import make_plan

CPU = Device(torch.device("cpu"), None)
FLAT = dict(dims=2, patch_size=(24, 16), strides=((1, 1), (2, 2), (2, 2)), kernels=((3, 3),) * 3)


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
    return TinyUNet(is_sum), torch.randn(2, 1, 8, 12), make_plan(**FLAT)


@pytest.mark.parametrize("is_sum", [False, True])
def test_the_one_skip_of_a_tiny_network_is_found_and_alive(is_sum):
    network, image, plan = tiny(is_sum)
    (row,) = skip_rows(network, image, plan, CPU)
    assert tuple(row) == records.SKIPS
    assert row["skip"] == "1: 8 x 12"
    assert (row["channels"], row["dead_channels"], row["verdict"]) == (4, 0, "alive")
    assert row["effect"] > 0.1


@pytest.mark.parametrize("is_sum", [False, True])
def test_a_skip_that_carries_nothing_is_dead(is_sum):
    network, image, plan = tiny(is_sum)
    nn.init.zeros_(network.side.weight)
    nn.init.zeros_(network.side.bias)
    (row,) = skip_rows(network, image, plan, CPU)
    assert (row["dead_channels"], row["mean_abs"], row["effect"], row["verdict"]) == (4, 0, 0, "dead")


def test_a_channel_that_is_the_same_everywhere_is_counted_as_dead_though_it_is_not_zero():
    network, image, plan = tiny()
    nn.init.zeros_(network.side.weight[1])
    (row,) = skip_rows(network, image, plan, CPU)
    assert (row["dead_channels"], row["verdict"]) == (1, "alive")


def test_a_skip_that_the_decoder_does_not_read_is_silent():
    network, image, plan = tiny()
    nn.init.zeros_(network.head.weight[:, 4:])
    (row,) = skip_rows(network, image, plan, CPU)
    assert (row["effect"], row["verdict"]) == (0, "silent")


@pytest.mark.parametrize(("dead", "effect", "expected"), [(4, 1, "dead"), (3, 0.02, "alive"), (0, 0.009, "silent")])
def test_the_verdict_follows_channels_and_effect(dead, effect, expected):
    assert verdict(channels=4, dead_channels=dead, effect=effect) == expected


def test_the_effect_is_what_zeroing_the_skip_does_to_the_logits():
    network, image, plan = tiny()
    (row,) = skip_rows(network, image, plan, CPU)
    with torch.no_grad():
        logits = network(image)
        network.side.weight.zero_()
        network.side.bias.zero_()
        expected = (network(image) - logits).norm() / logits.norm()
    assert row["effect"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("network", "resolutions"),
    [
        (lambda: UNet(2, 1, 3, (4, 8, 16, 32), (2, 2, 2), num_res_units=2), ["12 x 8", "6 x 4"]),
        (lambda: AttentionUnet(2, 1, 3, (4, 8, 16), (2, 2)), ["24 x 16", "12 x 8"]),
        (lambda: SegResNet(2, 8, 1, 3, blocks_down=(1, 1, 1), blocks_up=(1, 1)), ["24 x 16", "12 x 8"]),
        (lambda: nn.Sequential(nn.Conv2d(1, 4, 2, 2), nn.ConvTranspose2d(4, 3, 2, 2)), []),
    ],
)
def test_skips_are_found_in_networks_of_all_kinds(network, resolutions):
    torch.manual_seed(0)
    rows = skip_rows(network(), torch.randn(2, 1, 24, 16), make_plan(**FLAT), CPU)
    assert [row["skip"] for row in rows] == [f"{index}: {size}" for index, size in enumerate(resolutions, start=1)]


def test_every_connection_of_a_dense_network_is_a_skip_of_its_own():
    class Dense(BasicUNetPlusPlus):
        def forward(self, image):
            return super().forward(image)[0]

    torch.manual_seed(0)
    rows = skip_rows(Dense(2, 1, 3, (4, 4, 4, 4, 4, 4)), torch.randn(1, 1, 32, 48), make_plan(**FLAT), CPU)
    assert len(rows) == sum(above * (above + 1) // 2 for above in (4, 3, 2, 1))


@pytest.mark.parametrize("plan", [make_plan(), make_plan(**FLAT)], ids=["3d", "2d"])
def test_the_planned_network_has_one_skip_less_than_stages(plan):
    torch.manual_seed(0)
    rows = skip_rows(build_network(plan, 4), torch.randn(2, 1, *plan.patch_size), plan, CPU)
    assert [row["channels"] for row in rows] == [4, 8]
    assert rows[0]["skip"] == f"1: {' x '.join(map(str, plan.patch_size))}"


def test_a_skip_that_is_cropped_on_its_way_is_still_one():
    class Cropped(nn.Module):
        def forward(self, image):
            return torch.cat([image[..., 1:-1, 1:-1].relu().narrow(2, 0, 6), image.relu()[..., 1:-1, 1:-1]], dim=1)

    class Late(nn.Module):
        def forward(self, image):
            skip = image * 2
            up = functional.interpolate(functional.avg_pool2d(skip, 2), scale_factor=2)
            return torch.cat([skip.narrow(2, 1, 6), up.narrow(2, 1, 6)], dim=1)

    image, plan = torch.randn(1, 2, 8, 12), make_plan(**FLAT)
    assert [row["skip"] for row in skip_rows(Late(), image, plan, CPU)] == ["1: 6 x 12"]
    assert skip_rows(Cropped(), image, plan, CPU) == []


def test_a_map_pooled_to_one_voxel_is_no_coarser_resolution():
    class Gate(nn.Module):
        def forward(self, image):
            return image + image.relu() * image.relu().mean(dim=(2, 3), keepdim=True)

    assert skip_rows(Gate(), torch.randn(1, 2, 8, 12), make_plan(**FLAT), CPU) == []


@pytest.mark.parametrize("plan", [make_plan(), make_plan(**FLAT)], ids=["3d", "2d"])
def test_looking_leaves_weights_mode_and_random_state_as_they_were(plan):
    torch.manual_seed(0)
    network = build_network(plan, 4).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    image = torch.ones(2, 1, *plan.patch_size)
    skip_rows(network, image, plan, CPU)
    assert torch.equal(torch.get_rng_state(), state) and (image == 1).all()
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(weight.grad is None for weight in network.parameters())
