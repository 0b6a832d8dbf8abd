"""What is flagged about a new scan, and what is not: a flag on every scan would be read by nobody."""

import dataclasses

import numpy as np
import pytest

from pipeline.images import Grid
from pipeline.intensity import describe
from pipeline.novelty import Seen, look_at, seen_in_training, unusual, unusual_volumes, volumes_ml
from pipeline.records import Cohort

RNG = np.random.default_rng(0)


def ct(offset=0.0, scale=1.0):
    voxels = np.concatenate([np.full(500, -1000.0), RNG.normal(40, 60, 480), np.full(20, 700.0)])
    return describe(voxels * scale + offset)


def seen(**changes):
    scan = Seen(spacing_mm=(0.7, 0.8, 2.5), shape=(500, 440, 120), orientation="LPS", intensity=(ct(),))
    return dataclasses.replace(scan, **changes)


TRAINING = [seen(), seen(spacing_mm=(0.9, 0.9, 5.0), shape=(512, 512, 60), intensity=(ct(offset=20),))]


def flags(scan, scheme="ct"):
    return unusual(scan, TRAINING, ["CT"], [scheme])


def test_a_scan_like_those_of_training_has_no_flag():
    assert flags(seen()) == []
    assert flags(seen(spacing_mm=(0.5, 1.3, 7.0), shape=(600, 300, 50), intensity=(ct(offset=-60),))) == []


@pytest.mark.parametrize(
    ("scan", "flag"),
    [
        (seen(spacing_mm=(0.7, 0.8, 8.0), shape=(500, 440, 40)), "spacing along z 8 mm, 2.5 to 5 mm in training"),
        (seen(spacing_mm=(0.3, 0.8, 2.5), shape=(1200, 440, 120)), "spacing along x 0.3 mm, 0.7 to 0.9 mm in training"),
        (seen(shape=(500, 440, 700)), "field of view along z 1750 mm, 300 mm in training"),
        (seen(orientation="RAI"), "stored as RAI, LPS in training (read in RAS all the same)"),
        (seen(intensity=(ct(offset=1024),)), "intensity of CT: percentile 0.5 24, -1000 to -980 in training"),
    ],
)
def test_what_is_outside_of_training_is_named_with_both_numbers(scan, flag):
    assert flags(scan) == [flag]


def test_the_unit_of_a_channel_that_is_normalised_by_scan_does_not_matter_but_its_contrast_does():
    assert flags(seen(intensity=(ct(scale=30, offset=5),)), scheme="zscore") == []
    (flag,) = flags(seen(intensity=(ct(scale=-1),)), scheme="zscore")
    assert "standard deviations from the mean" in flag


def test_volumes_are_of_labels_and_of_regions_with_all_their_values():
    labels = np.array([0, 1, 1, 2, 9]).reshape(1, 1, 5)
    cohort = Cohort("a", "MSD", {0: "background", 1: "oedema", 2: "core"}, {0: "T1"}, ignore_label=9)
    assert volumes_ml(labels, (10.0, 10.0, 10.0), cohort) == {"oedema": 2, "core": 1}
    regions = dataclasses.replace(cohort, regions={"whole": [1, 2], "core": [2]})
    assert volumes_ml(labels, (10.0, 10.0, 10.0), regions) == {"whole": 3, "core": 1}
    assert volumes_ml(np.zeros((2, 2, 2), np.uint8), (1.0, 1.0, 1.0), cohort) == {"oedema": 0, "core": 0}


def test_a_label_that_is_missing_or_of_another_size_is_flagged_unless_training_has_such_cases():
    training = [{"liver": 1200.0, "tumour": 0.0}, {"liver": 1800.0, "tumour": 20.0}]
    assert unusual_volumes({"liver": 2500.0, "tumour": 0.0}, training) == []
    assert unusual_volumes({"liver": 0.0, "tumour": 15.0}, training) == ["liver not found, in every training case"]
    assert unusual_volumes({"liver": 90.0, "tumour": 90.0}, training) == [
        "volume of liver 90 ml, 1200 to 1800 ml in training",
        "volume of tumour 90 ml, 20 ml in training",
    ]


def test_volumes_that_training_did_not_write_down_flag_nothing():
    assert unusual_volumes({"liver": 90.0, "tumour": 0.0}, [{}, {}]) == []


def test_what_a_fingerprint_says_of_a_scan_is_read_back():
    voxels = RNG.normal(size=(2, 5, 7, 9)).astype(np.float32)
    grid = Grid((5, 7, 9), np.diag([0.7, 1.0, 2.5, 1.0]))
    scan = look_at(voxels, (slice(0, 5), slice(1, 7), slice(0, 9)), grid, "LAS")
    assert scan.intensity[1].maximum == pytest.approx(voxels[1, :, 1:].max())
    as_json = {**dataclasses.asdict(scan), "spacing_mm": [0.7, 1.0, 2.5], "shape": [5, 7, 9]}
    as_json["intensity"] = list(as_json["intensity"])
    assert seen_in_training({"cases": [{"case": "a", "volumes_ml": {}, **as_json}]}) == [scan]
