"""What probabilities say of a mask, by numbers that can be worked out on paper."""

import math

import numpy as np
import pytest

from pipeline.uncertainty import ExpectedDsc, Watch, disagreement, entropy
from tests.test_preprocess import make_plan


def probabilities(shape=(7, 3, 5), num_labels=3, seed=0):
    values = np.random.default_rng(seed).gamma(0.5, size=(num_labels, *shape))
    return (values / values.sum(axis=0)).astype(np.float32)


def by_hand(volume, masks):
    return [2 * (p * m).sum() / (p.sum() + m.sum()) if m.any() else None for p, m in zip(volume, masks, strict=True)]


def test_the_expected_dsc_of_labels_is_the_soft_dice_with_their_mask_however_the_volume_is_cut():
    volume = probabilities()
    expected = ExpectedDsc(3, has_background=True)
    for rows in (slice(0, 1), slice(1, 5), slice(5, 7)):
        expected.add(volume[:, rows])
    likeliest = volume.argmax(axis=0)
    assert expected.per_output == pytest.approx(by_hand(volume, [likeliest == label for label in range(3)]), rel=1e-5)


def test_the_expected_dsc_of_regions_which_may_overlap_counts_what_is_above_one_half():
    volume = np.random.default_rng(1).random((2, 3, 4, 5)).astype(np.float32)
    expected = ExpectedDsc(2, has_background=False)
    expected.add(volume)
    assert expected.per_output == pytest.approx(by_hand(volume, volume > 0.5), rel=1e-5)


def test_a_sure_mask_expects_one_and_a_label_that_is_nowhere_expects_nothing():
    volume = np.zeros((3, 2, 2, 2), np.float32)
    volume[0, 0] = volume[1, 1] = 1
    expected = ExpectedDsc(3, has_background=True)
    expected.add(volume)
    assert expected.per_output == [1, 1, None]


def test_entropy_is_0_where_one_label_is_sure_and_1_where_all_are_alike():
    volume = np.array([[1, 1 / 4, 1 / 2], [0, 1 / 4, 1 / 2], [0, 1 / 4, 0], [0, 1 / 4, 0]], np.float32)
    found = entropy(volume.reshape(4, 1, 1, 3), has_background=True)
    assert found.ravel() == pytest.approx([0, 1, math.log(2) / math.log(4)], abs=1e-6)


def test_entropy_of_regions_is_the_mean_of_each():
    volume = np.array([[1, 0.5, 0.5], [0, 0.5, 1]], np.float32).reshape(2, 1, 1, 3)
    assert entropy(volume, has_background=False).ravel() == pytest.approx([0, 1, 0.5], abs=1e-6)


def test_disagreement_is_the_standard_deviation_between_networks_mean_over_labels():
    one = np.array([[1, 0.5], [0, 0.5]], np.float32).reshape(2, 1, 1, 2)
    other = np.array([[0, 0.5], [1, 0.5]], np.float32).reshape(2, 1, 1, 2)
    assert disagreement([one, other]).ravel() == pytest.approx([0.5, 0])
    assert (disagreement([one]) == 0).all()


def test_a_watch_passes_on_the_mean_and_maps_every_row():
    members = [probabilities(seed=seed) for seed in range(2)]
    watch = Watch(make_plan(), has_maps=True)
    slabs = [[member[:, rows] for member in members] for rows in (slice(0, 4), slice(4, 7))]
    passed = np.concatenate(list(watch.pass_on(slabs)), axis=1)
    assert passed == pytest.approx((members[0] + members[1]) / 2)
    for kind in ("entropy", "disagreement"):
        assert np.concatenate(watch.maps[kind], axis=1).shape == (1, 7, 3, 5)
    assert all(0 < value < 1 for value in watch.expected.per_output)
