"""Mirrors by patient axis: where they lie in a patch, what changes sides, and that prediction changes it back."""

import re

import pytest
import torch
from torch.nn import functional

from pipeline.config import complete
from pipeline.errors import ConfigError
from pipeline.mirrors import Mirror, find_mirrors
from pipeline.nn.augment.spatial import swap
from pipeline.nn.checkpoints import Model
from pipeline.nn.device import Device
from pipeline.nn.sliding import swap_back
from pipeline.windows import Window
from tests.dense import predict_densely
from tests.test_preprocess import make_plan

CPU = Device(torch.device("cpu"), None)


def test_patient_axes_are_found_along_the_plans_axes():
    assert find_mirrors(make_plan(axes="zyx"), ["x", "z"]) == (Mirror(2), Mirror(0))
    assert find_mirrors(make_plan(axes="xzy"), ["x", {"axis": "y"}]) == (Mirror(0), Mirror(2))
    assert find_mirrors(make_plan(axes="zyx", dims=2), ["x", "z"]) == (Mirror(1),), "a slice across z has no z"
    assert find_mirrors(make_plan(), []) == ()


def test_swapped_labels_become_class_indices():
    (mirror,) = find_mirrors(make_plan(labels=(0, 2, 5)), [{"axis": "x", "swap": [[5, 2]]}])
    assert mirror == Mirror(2, swaps=((2, 1),), output_swaps=((2, 1),))


def test_regions_follow_their_labels():
    plan = make_plan(labels=(0, 2, 5), regions=((2, 5), (2,), (5,)))
    assert find_mirrors(plan, [{"axis": "x", "swap": [[2, 5]]}]) == (Mirror(2, ((1, 2),), ((1, 2),)),)
    assert find_mirrors(plan, ["x"]) == (Mirror(2),)


@pytest.mark.parametrize(
    ("changes", "swap", "message"),
    [
        ({}, [[2, 9]], "swaps label 9 along z, yet 3d_fullres knows the labels 0, 2, 5. Correct the pair or remove it"),
        ({"dims": 2}, [[2, 9]], "swaps label 9 along z"),
        ({"regions": ((2, 5), (2,))}, [[2, 5]], "along z turns the region of labels [2] into [5], which is none of"),
        ({"task": "regression"}, [[2, 5]], "task is regression, which has none. Write `z` without `swap`"),
    ],
)
def test_a_swap_that_cannot_be_is_refused_by_name(changes, swap, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        find_mirrors(make_plan(**changes), [{"axis": "z", "swap": swap}])


@pytest.mark.parametrize(
    ("mirror", "message"),
    [
        (["x", {"axis": "x", "swap": [[1, 2]]}], "train.mirror names x twice"),
        ([{"axis": "x", "swap": [[1, 2], [2, 3]]}], "swaps label 2 twice along x"),
        ([{"axis": "x", "swap": [[4, 4]]}], "swaps label 4 twice along x"),
        (["w"], "train.mirror.0 is 'w'"),
        ([{"axis": "x", "swap": [[0, 1]]}], "train.mirror.0"),
    ],
)
def test_a_contradictory_mirror_is_refused_when_the_configuration_is_read(mirror, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        complete({"name": "a", "cohort": "demo", "train": {"mirror": mirror}})


def test_mirroring_is_off_unless_asked_for():
    assert complete({"name": "a", "cohort": "demo"})["train"]["mirror"] == []


def test_copies_are_all_subsets_of_the_mirrors():
    x, z = Mirror(0), Mirror(2)
    assert Window((8, 8, 8), 0.5).copies == [()]
    assert Window((8, 8, 8), 0.5, (x, z)).copies == [(), (x,), (z,), (x, z)]


def test_maps_return_to_their_places_even_where_two_mirrors_share_a_label():
    mirrors = (Mirror(0, ((1, 2),), ((1, 2),)), Mirror(1, ((2, 3),), ((2, 3),)))
    reference = torch.arange(5).view(1, 1, 5)
    seen = reference
    for mirror in mirrors:
        seen = swap(seen, mirror.swaps)
    maps = functional.one_hot(seen[0, 0], 5).movedim(-1, 0)
    assert torch.equal(swap_back(maps, mirrors).argmax(0), reference[0, 0])


class TwoSides(torch.nn.Module):
    """Class 1 looks one way along the last axis and class 2 the other: swapping them and flipping is the same."""

    def __init__(self, dims):
        super().__init__()
        torch.manual_seed(0)
        kernel = torch.randn(3, 1, *(3,) * dims)
        self.kernel = torch.stack([kernel[0] + kernel[0].flip(-1), kernel[1], kernel[1].flip(-1)])

    def forward(self, image):
        convolve = functional.conv3d if self.kernel.ndim == 5 else functional.conv2d
        return convolve(image, self.kernel, padding=1)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_network_that_knows_both_sides_predicts_the_same_with_and_without_mirroring(dims):
    plan = make_plan(dims=dims, patch_size=(16, 24, 16)[-dims:])
    model = Model(TwoSides(dims), plan, width=4)
    image = torch.randn(1, 16, 24, 16).numpy()
    mirrors = find_mirrors(plan, [{"axis": "x", "swap": [[2, 5]]}])
    plain, mirrored, unswapped = (
        torch.from_numpy(predict_densely([model], image, CPU, overlap=0.5, mirrors=tuple(wanted)))
        for wanted in ((), mirrors, (Mirror(mirrors[0].axis),))
    )
    assert torch.allclose(plain, mirrored, atol=1e-5)
    assert not torch.allclose(plain, unswapped, atol=1e-2)
