"""Losses by name: the value is what MONAI, torch or a pencil gives, and ignored voxels count for nothing."""

import re

import pytest
import torch
from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss, FocalLoss, GeneralizedDiceLoss, TverskyLoss
from torch.nn import functional

from pipeline.config import LOSSES
from pipeline.errors import ConfigError
from pipeline.nn.losses import make_loss
from pipeline.nn.outputs import activate, masks_of
from tests.test_preprocess import make_plan

IGNORED = 3  # the class index after those of the labels 0, 2 and 5
LABELS = make_plan()
REGIONS = make_plan(regions=((2, 5), (5,)))
REGRESSION = make_plan(task="regression")
SHAPE = (2, 3, 6, 7, 5)


def loss(name, plan=LABELS, weights=()):
    return make_loss({"loss": name, "class_weights": list(weights)}, plan)


def random_case(num_outputs=3, num_classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, num_outputs, *SHAPE[2:], generator=generator)
    return logits, torch.randint(num_classes, (2, 1, *SHAPE[2:]), generator=generator).to(torch.int16)


def gradient(function, logits):
    logits = logits.clone().requires_grad_()
    function(logits).backward()
    return logits.grad


ONE_HOT = dict(to_onehot_y=True, softmax=True)
PEERS = {
    "dice": DiceLoss(include_background=False, **ONE_HOT),
    "dice_ce": DiceCELoss(include_background=False, **ONE_HOT),
    "focal": FocalLoss(to_onehot_y=True, use_softmax=True),
    "tversky": TverskyLoss(include_background=False, alpha=0.3, beta=0.7, **ONE_HOT),
    "generalized_dice": GeneralizedDiceLoss(**ONE_HOT),
    "ce": lambda logits, reference: functional.cross_entropy(logits, reference[:, 0].long()),
}


@pytest.mark.parametrize("name", PEERS)
def test_losses_of_labels_and_their_gradients_are_monais(name):
    logits, reference = random_case()
    assert torch.allclose(loss(name)(logits, reference), PEERS[name](logits, reference))
    ours = gradient(lambda values: loss(name)(values, reference), logits)
    theirs = gradient(lambda values: PEERS[name](values, reference), logits)
    assert torch.allclose(ours, theirs, atol=1e-7)


PEERS_OF_REGIONS = {
    "dice": DiceLoss(sigmoid=True),
    "dice_bce": lambda logits, masks: (
        DiceLoss(sigmoid=True)(logits, masks) + functional.binary_cross_entropy_with_logits(logits, masks)
    ),  # DiceCELoss(sigmoid=True) takes softmax cross-entropy of two outputs or more
    "dice_focal": DiceFocalLoss(sigmoid=True),
    "focal": FocalLoss(),
    "tversky": TverskyLoss(sigmoid=True, alpha=0.3, beta=0.7),
    "generalized_dice": GeneralizedDiceLoss(sigmoid=True),
    "bce": functional.binary_cross_entropy_with_logits,
}


@pytest.mark.parametrize("name", PEERS_OF_REGIONS)
def test_losses_of_regions_and_their_gradients_are_monais(name):
    logits, reference = random_case(num_outputs=2)
    masks = torch.cat([reference > 0, reference == 2], dim=1).float()
    assert torch.equal(masks_of(reference, REGIONS).float(), masks)
    assert torch.allclose(loss(name, REGIONS)(logits, reference), PEERS_OF_REGIONS[name](logits, masks))
    ours = gradient(lambda values: loss(name, REGIONS)(values, reference), logits)
    theirs = gradient(lambda values: PEERS_OF_REGIONS[name](values, masks), logits)
    assert torch.allclose(ours, theirs, atol=1e-7)


def test_softmax_and_sigmoid_are_applied_once():
    """Two voxels, one of each label, of probabilities 0.8 and 0.6 for what they are."""
    probabilities = torch.tensor([[0.8, 0.4], [0.2, 0.6]])
    reference = torch.tensor([0, 1]).view(1, 1, 2, 1, 1)
    two = make_plan(labels=(0, 5))
    logits = probabilities.log().view(1, 2, 2, 1, 1)
    assert torch.allclose(activate(logits, two).flatten(), probabilities.flatten())
    assert loss("ce", two)(logits, reference).item() == pytest.approx(0.3669846)  # -(ln 0.8 + ln 0.6) / 2
    assert loss("dice", two)(logits, reference).item() == pytest.approx(1 - 2 * 0.6 / (0.8 + 1), abs=1e-5)
    one = make_plan(labels=(0, 5), regions=((5,),))
    logits = torch.logit(torch.tensor([0.2, 0.6])).view(1, 1, 2, 1, 1)
    assert torch.allclose(activate(logits, one).flatten(), torch.tensor([0.2, 0.6]))
    assert loss("bce", one)(logits, reference).item() == pytest.approx(0.3669846)
    assert loss("dice", one)(logits, reference).item() == pytest.approx(1 - 2 * 0.6 / (0.8 + 1), abs=1e-5)


def test_regression_losses_are_the_mean_square_and_the_mean_absolute_error():
    output, reference = torch.tensor([0.0, 1, 2]).view(1, 1, 3), torch.tensor([1.0, 1, 5]).view(1, 1, 3)
    assert loss("mse", REGRESSION)(output, reference).item() == pytest.approx(10 / 3)
    assert loss("mae", REGRESSION)(output, reference).item() == pytest.approx(4 / 3)
    assert torch.equal(activate(output, REGRESSION), output), "linear"


def test_topk_ce_is_the_mean_of_the_worst_tenth():
    logits = torch.zeros(1, 3, 5, 4, 1)
    logits[:, 0] = torch.arange(20.0).view(5, 4, 1)
    reference = torch.ones(1, 1, 5, 4, 1, dtype=torch.int16)
    both = functional.cross_entropy(logits.flatten(2)[..., -2:], torch.ones(1, 2, dtype=torch.int64))
    assert torch.allclose(loss("topk_ce")(logits, reference), both)


def plans():
    fitting = {"labels": LABELS, "regions": REGIONS, "regression": REGRESSION}
    return [(name, plan) for kind, plan in fitting.items() for name in LOSSES[kind]]


SEGMENTATIONS = [(name, plan) for name, plan in plans() if plan.task == "segmentation"]


@pytest.mark.parametrize(("name", "plan"), plans())
@pytest.mark.parametrize("dims", [2, 3])
def test_a_perfect_output_has_no_loss_and_a_wrong_one_has(name, plan, dims):
    plan = make_plan(task=plan.task, regions=plan.regions, dims=dims)
    _, reference = random_case()
    reference = reference if dims == 3 else reference[..., 0]
    right = reference.float() if plan.task == "regression" else (masks_of(reference, plan) * 2.0 - 1) * 50
    assert loss(name, plan)(right, reference) < 1e-3
    assert loss(name, plan)(-right, reference) > 0.5


@pytest.mark.parametrize(("name", "plan"), SEGMENTATIONS)
@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_ignored_voxels_change_neither_loss_nor_gradient(name, plan, is_weighted, dims):
    plan = make_plan(regions=plan.regions, ignore_label=9, dims=dims)
    weights = (1, 2, 3)[: plan.num_outputs] if is_weighted and name != "generalized_dice" else ()
    logits, reference = random_case(plan.num_outputs, num_classes=4)
    is_ignored = (reference == IGNORED).expand_as(logits)
    assert is_ignored.any()
    other = torch.where(is_ignored, torch.randn_like(logits) * 20, logits)
    measure = loss(name, plan, weights)
    assert torch.allclose(measure(logits, reference), measure(other, reference))
    before, after = (gradient(lambda values: measure(values, reference), given) for given in (logits, other))
    assert torch.allclose(before, after, atol=1e-7)
    assert not before[is_ignored].any()
    assert before[~is_ignored].any()


@pytest.mark.parametrize(("name", "plan"), SEGMENTATIONS)
def test_a_patch_that_is_all_ignored_has_no_gradient(name, plan):
    plan = make_plan(regions=plan.regions, ignore_label=9)
    logits, reference = random_case(plan.num_outputs)
    slope = gradient(lambda values: loss(name, plan)(values, torch.full_like(reference, IGNORED)), logits)
    assert torch.equal(slope, torch.zeros_like(logits))


@pytest.mark.parametrize(("name", "plan"), SEGMENTATIONS)
def test_means_over_voxels_do_not_see_that_ignored_voxels_were_there(name, plan):
    """Half of the voxels ignored, or only the other half given: the same number."""
    ignoring = make_plan(regions=plan.regions, ignore_label=9)
    logits, reference = random_case(plan.num_outputs)
    half = reference.clone()
    half[:, :, 3:] = IGNORED
    assert torch.allclose(loss(name, ignoring)(logits, half), loss(name, plan)(logits[:, :, :3], reference[:, :, :3]))


@pytest.mark.parametrize("name", ["ce", "topk_ce", "dice", "focal", "dice_ce", "dice_focal", "tversky"])
def test_only_the_ratios_of_class_weights_matter_and_equal_weights_change_nothing(name):
    logits, reference = random_case()
    plain, equal = loss(name)(logits, reference), loss(name, weights=(4, 4, 4))(logits, reference)
    assert torch.allclose(plain, equal)
    one, ten = (loss(name, weights=[part * factor for part in (1, 2, 7)])(logits, reference) for factor in (1, 10))
    assert torch.allclose(one, ten)
    assert not torch.allclose(one, plain)


def test_class_weights_go_by_the_order_of_labels_background_first():
    logits, reference = random_case()
    weights = torch.tensor([1.0, 2, 7])
    expected = functional.cross_entropy(logits, reference[:, 0].long(), weight=weights)
    assert torch.allclose(loss("ce", weights=(1, 2, 7))(logits, reference), expected)
    only_second = torch.cat([logits[:, :1], logits[:, 2:], logits[:, 1:2]], dim=1)
    swapped = torch.tensor([0, 2, 1], dtype=torch.int16)[reference.long()]
    assert torch.allclose(
        loss("dice", weights=(0, 1, 0))(logits, reference), loss("dice", weights=(0, 0, 1))(only_second, swapped)
    )


def test_weights_of_regions_go_by_their_order():
    logits, reference = random_case(num_outputs=2)
    second = loss("bce", make_plan(regions=((5,),)))(logits[:, 1:], reference)
    assert torch.allclose(loss("bce", REGIONS, (0, 3))(logits, reference), second)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (LABELS, "train.class_weights has 1 numbers, 3 expected: one for each of the labels 0, 2, 5, in this order"),
        (REGIONS, "train.class_weights has 1 numbers, 2 expected: one for each of the regions, in this order"),
    ],
)
def test_a_wrong_number_of_class_weights_is_said(plan, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        loss("dice", plan, (1,))


def test_each_coarser_level_has_half_the_weight_and_its_own_nearest_reference():
    logits, reference = random_case()
    coarse = logits[:, :, ::2, ::2, ::2].contiguous()
    reduced = functional.interpolate(reference.float(), size=coarse.shape[2:], mode="nearest-exact").to(torch.int16)
    measure = loss("dice_ce")
    expected = (2 * measure(logits, reference) + measure(coarse, reduced)) / 3
    assert torch.allclose(measure([logits, coarse], reference), expected)


def test_in_2d_the_overlap_is_of_the_whole_batch():
    logits, reference = random_case()
    flat, flat_reference = logits[..., 0], reference[..., 0]
    peer = DiceLoss(include_background=False, batch=True, **ONE_HOT)
    assert torch.allclose(loss("dice", make_plan(dims=2))(flat, flat_reference), peer(flat, flat_reference))
