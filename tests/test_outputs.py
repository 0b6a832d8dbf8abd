"""What a network's maps stand for: labels, regions that may overlap, and voxels that are left out."""

import torch

from pipeline.nn import losses, outputs
from pipeline.nn.outputs import count_voxels, found_masks, masks_of
from tests.test_preprocess import make_plan

LABELS = make_plan(ignore_label=9)  # labels 0, 2 and 5
REGIONS = make_plan(regions=((2, 5), (5,)), ignore_label=9)
REFERENCE = torch.tensor([0, 1, 2, 3], dtype=torch.int16).view(1, 1, 4)  # background, 2, 5, ignored


def test_every_label_has_a_mask_and_ignored_voxels_are_in_none():
    assert masks_of(REFERENCE, LABELS)[0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]


def test_regions_overlap_where_they_share_a_label():
    assert masks_of(REFERENCE, REGIONS)[0].int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 0]]


def test_what_small_tensors_say_is_copied_to_a_device_once(monkeypatch):
    """A GPU is waited for at each copy."""
    made = []
    monkeypatch.setattr(outputs, "class_table", lambda *plan: made.append(plan) or torch.zeros(5, 2, dtype=torch.bool))
    plan = make_plan(labels=(0, 2, 5, 6), regions=((2, 5), (6,)))
    for _ in range(3):
        masks_of(REFERENCE, plan)
    assert len(made) == 1
    weights_on = losses._copied_once(torch.ones(2))
    assert weights_on(torch.device("meta")) is weights_on(torch.device("meta"))


def test_the_likeliest_label_is_found_and_every_region_above_one_half():
    outputs = torch.tensor([[1.0, 0, 0, 0], [0, 2, 0, 0], [0, 1, -1, 1]])
    assert found_masks(outputs[None], LABELS)[0].int().tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    assert found_masks(outputs[None, 1:], REGIONS)[0].int().tolist() == [[0, 1, 0, 0], [0, 1, 0, 1]]


def test_counts_leave_ignored_voxels_out():
    everything = torch.full((1, 2, 4), 1.0)
    right, found, wanted = count_voxels(everything, REFERENCE, REGIONS)
    assert (right.tolist(), found.tolist(), wanted.tolist()) == ([2, 1], [3, 3], [2, 1])
    last = torch.tensor([0.0, 0, 1]).view(1, 3, 1).expand(1, 3, 4)
    right, found, wanted = count_voxels(last, REFERENCE, LABELS)
    assert (right.tolist(), found.tolist(), wanted.tolist()) == ([0, 0, 1], [0, 0, 3], [1, 1, 1])
