import re
from pathlib import Path

import pytest

from pipeline.architectures import (
    ARCHITECTURES,
    candidate_widths,
    classic_margin,
    classic_stages,
    fit_architecture,
)
from pipeline.config import SCHEMA
from pipeline.errors import PlanError
from pipeline.plan import plan_configuration
from pipeline.topology import topology
from tests.test_plan import COHORT, make_fingerprint, settings

README = (Path(__file__).parents[1] / "README.md").read_text()


def fit(patch_size, **given):
    return fit_architecture(
        "mine", settings(dims=len(patch_size), **given), topology((1,) * len(patch_size), patch_size)
    )


def test_the_schema_knows_the_same_networks():
    assert SCHEMA["$defs"]["configuration"]["properties"]["network"]["enum"] == list(ARCHITECTURES)


@pytest.mark.parametrize(
    ("network", "patch_size"),
    [
        ("unet", (40, 56, 40)),
        ("residual_unet", (40, 56, 40)),
        ("classic_unet", (40, 56, 40)),
        ("attention_unet", (40, 56, 40)),
        ("unet_plus_plus", (48, 64, 48)),
        ("segresnet", (40, 56, 40)),
        ("swin_unetr", (64, 64, 64)),
        ("unetr", (48, 64, 48)),
        ("backbone_unet", (64, 64, 64)),
        ("fcn", (40, 56, 40)),
    ],
)
def test_the_patch_of_hippocampus_is_rounded_up_to_what_the_network_halves(network, patch_size):
    plan = plan_configuration(make_fingerprint(), COHORT, "mine", settings(dims=3, network=network), 8)
    assert plan.patch_size == patch_size
    assert len(plan.kernels) == len(plan.strides)
    assert all(edge % 2 ** (len(plan.strides) - 1) == 0 for edge in plan.patch_size)
    assert plan.reasons["strides"]
    flat = plan_configuration(make_fingerprint(), COHORT, "mine", settings(dims=2, network=network), 8)
    assert len(flat.patch_size) == 2


def test_networks_with_one_kernel_do_not_claim_the_plans():
    flat = topology((3, 1, 1), (16, 64, 64))
    assert flat.kernels[0] == (1, 3, 3)
    assert fit_architecture("mine", settings(dims=3, network="fcn"), flat)[0] == flat
    attention, _ = fit_architecture("mine", settings(dims=3, network="attention_unet"), flat)
    assert (attention.strides, set(attention.kernels)) == (flat.strides, {(3, 3, 3)})


@pytest.mark.parametrize(
    ("network", "patch_size", "message"),
    [
        ("swin_unetr", (8, 40, 40), "too small for swin_unetr, which halves every edge 5 times: edges of 16 or more"),
        ("swin_unetr", (32, 32, 32), "one of them more than 32"),
        ("unetr", (16, 16), "mine: a patch of 16 × 16 voxels is too small for unetr"),
        (
            "backbone_unet",
            (32, 24),
            "Set a larger `patch_size`, a finer `spacing_mm`, more `memory_gib`, or `network: unet`",
        ),
    ],
)
def test_a_patch_that_is_mostly_surroundings_or_ends_in_one_voxel_is_refused(network, patch_size, message):
    with pytest.raises(PlanError, match=re.escape(message)):
        fit(patch_size, network=network)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"network": "backbone_unet", "encoder": "resnet19"}, "mine: encoder is 'resnet19'. Did you mean 'resnet18'?"),
        ({"network": "backbone_unet", "encoder": "vgg"}, "encoder is 'vgg'. Known encoders: resnet10, "),
        ({"network": "unetr", "stages": 4}, "mine: `stages` is 4, yet unetr always has 5"),
        ({"network": "backbone_unet", "features": 16}, "`features` is 16, yet backbone_unet is as wide as its encoder"),
    ],
)
def test_a_setting_that_the_network_does_not_have_is_refused_not_ignored(given, message):
    with pytest.raises(PlanError, match=re.escape(message)):
        fit((64, 64), **given)


@pytest.mark.parametrize(
    ("patch_size", "is_padded", "stages"),
    [
        ((388, 388), False, 5),
        ((40, 56), False, 3),
        ((8, 8), False, 2),
        ((128, 128, 128), False, 4),
        ((388, 388), True, 5),
        ((40, 56), True, 4),
        ((8, 8, 8), True, 2),
    ],
)
def test_a_classic_unet_is_as_deep_as_its_patch_allows(patch_size, is_padded, stages):
    assert classic_stages(patch_size, is_padded) == stages
    fitted, _ = fit(patch_size, network="classic_unet", padded=is_padded)
    assert len(fitted.strides) == stages


def test_the_margin_of_the_original_is_that_of_its_paper():
    assert 572 - 2 * classic_margin(5) == 388


def test_the_depth_of_a_classic_unet_can_be_set():
    fitted, reason = fit((40, 56), network="classic_unet", stages=4)
    assert (len(fitted.strides), fitted.patch_size) == (4, (40, 56))
    assert "mirrors 44 voxels" in reason
    assert fit((40, 56), network="classic_unet", stages=5, padded=True)[0].patch_size == (48, 64)


def test_widths_are_full_size_and_less_or_what_is_set():
    assert candidate_widths(settings(dims=2)) == [8, 16, 32]
    assert candidate_widths(settings(dims=2, network="classic_unet")) == [16, 32, 64]
    assert candidate_widths(settings(dims=2, network="backbone_unet")) == [32], "its encoder decides"
    assert candidate_widths(settings(dims=2, features=12)) == [12]


@pytest.mark.parametrize("network", ARCHITECTURES)
def test_the_readme_says_what_each_network_is(network):
    line = next(line for line in README.splitlines() if line.startswith(f"| `{network}` |"))
    assert ARCHITECTURES[network].idea in line
    assert ARCHITECTURES[network].source in line
