"""The cascade: what its network takes in, which mistakes it learns to correct, and that it runs from stage to stage."""

import dataclasses
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from pipeline import discover, fingerprint, records, segment
from pipeline.check.__main__ import main as check
from pipeline.config import complete, settings_of
from pipeline.errors import CohortError, PlanError
from pipeline.flow import Run
from pipeline.images import read_labels_ras
from pipeline.mirrors import Mirror, find_mirrors
from pipeline.nn.augment import Options, augment
from pipeline.nn.augment.mistakes import grow_and_shrink, make_mistakes
from pipeline.nn.checkpoints import Model
from pipeline.nn.device import Device
from pipeline.nn.forms import training_step, usual_form
from pipeline.nn.networks import build_network
from pipeline.nn.networks.cascaded import Cascaded
from pipeline.paths import Results
from pipeline.phantoms import write_cohort
from pipeline.plan import Width, plan_configuration, read_plan
from pipeline.plan.__main__ import main as plan_stage
from pipeline.predict import main as predict
from pipeline.preprocess import load_image, load_placement, prepare
from pipeline.preprocess import main as preprocess
from pipeline.train import main as train
from pipeline.windows import Setting
from tests.dense import predict_densely
from tests.test_plan import COHORT, make_fingerprint, settings
from tests.test_preprocess import SPACING, labelled_scan, make_plan

LOW, FULL = "3d_lowres", "3d_cascade_fullres"
CPU = Device(torch.device("cpu"), None)


def cascade_plan(**changes):
    """Labels 0, 2 and 5, one channel."""
    return make_plan(**{"configuration": FULL, "previous": LOW, **changes})


# Its plan


def test_a_cascade_has_the_plan_of_full_resolution_and_an_input_for_each_label_or_region():
    full, cascade = (
        plan_configuration(make_fingerprint(), COHORT, name, settings(dims=3), 8) for name in ("3d_fullres", FULL)
    )
    assert cascade == dataclasses.replace(full, configuration=FULL, previous=LOW, reasons=cascade.reasons)
    assert cascade.reasons["previous"] == "refines the masks that 3d_lowres predicts for scans which it never saw"
    assert (full.num_channels, full.num_inputs) == (1, 1)
    assert (cascade.num_channels, cascade.num_inputs) == (2, 3)
    assert cascade_plan(regions=((2, 5), (5,))).num_inputs == 3


def test_a_cascade_is_left_out_with_its_low_resolution_and_says_why(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = Results("a")
    records.write_cohort(files.cohort, COHORT)
    records.write_json(files.fingerprint, make_fingerprint(num_cases=3))
    for name in (LOW, FULL):
        plan_stage("a", name, json.dumps(settings(dims=3)))
    reason = "a patch at full resolution covers 100% of the median scan, a quarter or more"
    assert records.left_out(files.plan(FULL)) == f"there is no 3d_lowres, for {reason}"
    assert (
        f"3d_cascade_fullres: left out, for there is no 3d_lowres, for {reason}. "
        "Set the `spacing_mm` of 3d_lowres to train it all the same."
    ) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "previous", "message"),
    [(FULL, None, "previous is None, '3d_lowres' expected"), ("mine", LOW, "previous is '3d_lowres', None expected")],
)
def test_which_configuration_is_refined_cannot_be_edited(tmp_path, name, previous, message):
    plan = cascade_plan(configuration=name, previous=previous, widths=(Width(4, 0.01),))
    records.write_json(tmp_path / "plan.json", dataclasses.asdict(plan))
    with pytest.raises(PlanError, match=re.escape(message)):
        read_plan(tmp_path / "plan.json")


# Its jobs


def test_the_jobs_of_a_cascade_wait_for_the_plan_and_the_masks_before_it():
    run = Run({"name": "a", "cohort": "demo", "configurations": ["2d", LOW, FULL], "folds": 3})
    of = {name: type("Wildcards", (), {"configuration": name, "fold": 1}) for name in run.configurations}
    assert run.previous_plan(of[FULL]) == [run.files.plan(LOW)]
    assert run.previous_masks(of[FULL]) == [run.files.predicted(LOW, 1)]
    assert [run.previous_plan(of[name]) + run.previous_masks(of[name]) for name in ("2d", LOW)] == [[], []]
    assert {path.parent.name for path in run.all_predicted(None)} == {"2d"}, "no other is sure"
    sure = Run({"name": "a", "cohort": "demo", "configurations": {LOW: {"spacing_mm": [3, 3, 3]}, FULL: {}}})
    assert {path.parent.name for path in sure.all_predicted(None)} == {LOW, FULL}


# What its network takes in


@pytest.mark.parametrize("axes", ["zyx", "xzy", "yxz"])
@pytest.mark.parametrize("target", [2.0, 0.9], ids=["coarser", "finer"])
def test_the_mask_before_lies_where_a_reference_of_the_same_voxels_would(axes, target):
    image, labels = labelled_scan()
    image[:, :2] = 0  # the scan is cropped there
    prepared = prepare(image, SPACING, cascade_plan(axes=axes, spacing_mm=(target,) * 3), labels, previous=labels)
    assert prepared.image.shape == (2, *prepared.classes.shape)
    assert prepared.image.dtype == np.float32
    assert np.array_equal(prepared.image[1], prepared.classes)
    assert set(np.unique(prepared.image[1])) == {0, 1, 2}
    alone = prepare(image, SPACING, make_plan(axes=axes, spacing_mm=(target,) * 3))
    assert np.array_equal(prepared.image[:1], alone.image), "the scan is as it is without a cascade"


@pytest.mark.parametrize(
    ("regions", "expected"),
    [((), [[0, 1, 0, 0], [0, 0, 1, 0]]), (((2, 5), (5,)), [[0, 1, 1, 0], [0, 0, 1, 0]])],
    ids=["labels", "regions"],
)
def test_a_network_sees_a_map_of_each_label_or_region_beside_the_channels(regions, expected):
    image = torch.tensor([[0.5, -1, 2, 0.1], [0, 1, 2, 0]])[None, :, None, None]
    seen = Cascaded(nn.Identity(), cascade_plan(regions=regions))(image)
    assert torch.equal(seen[0, :, 0, 0], torch.tensor([image[0, 0, 0, 0].tolist(), *expected]))


@pytest.mark.parametrize("regions", [(), ((2, 5), (5,))], ids=["labels", "regions"])
def test_a_training_step_is_measured_with_all_inputs(regions):
    plan = cascade_plan(regions=regions)
    training_step(usual_form(CPU, 3), plan, 4, CPU)(2)
    first = next(part for part in build_network(plan, 4).modules() if isinstance(part, nn.Conv3d))
    assert first.in_channels == plan.num_inputs == 3


class TwoSides(nn.Module):
    """Knows nothing but the mask before: its two labels, from which swapping and flipping makes the same."""

    def forward(self, image):
        return torch.cat((torch.zeros_like(image[:, :1]), 4 * image[:, -2:]), dim=1)


def test_mirrored_copies_see_the_mask_with_its_labels_on_the_other_side():
    plan, classes = cascade_plan(), torch.randint(3, (1, 16, 24, 16)).float()
    image = torch.cat((torch.randn(1, 16, 24, 16), classes)).numpy()
    model = Model(Cascaded(TwoSides(), plan), plan, width=4)
    mirrors = find_mirrors(plan, [{"axis": "x", "swap": [[2, 5]]}, "z"])
    plain, mirrored = (predict_densely([model], image, CPU, mirrors=tuple(wanted)) for wanted in ((), mirrors))
    assert np.array_equal(plain.argmax(axis=0), classes[0].numpy())
    assert np.allclose(plain, mirrored, atol=1e-6)


# Its augmentation


SHAPES = [(9, 14, 11), (13, 12), (3, 14, 16)]  # a volume, a slice, a flat volume


@pytest.fixture
def no_mistakes(monkeypatch):
    monkeypatch.setattr("pipeline.nn.augment.make_mistakes", lambda mask, num_classes: None)


def masked_batch(shape, count=12):
    """A mask equal to the reference, as the last of two channels."""
    torch.manual_seed(0)
    reference = torch.randint(3, (count, 1, *shape), dtype=torch.int16)
    return torch.cat((torch.randn(count, 1, *shape), reference.float()), dim=1), reference


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mask_moves_and_changes_sides_with_the_reference_and_keeps_whole_classes(shape, no_mistakes):
    image, reference = masked_batch(shape)
    mirrors = [Mirror(len(shape) - 1, swaps=((1, 2),), output_swaps=((1, 2),))]
    options = Options(elastic=True, artefacts=("bias_field", "ghosting", "motion"), mask_classes=3)
    before = image.clone()
    changed, moved = augment(image, reference, options, mirrors)
    assert torch.equal(changed[:, 1:], moved.float())
    assert (moved.shape, moved.dtype, changed.shape) == (reference.shape, reference.dtype, image.shape)
    assert not torch.equal(moved, reference)
    assert torch.equal(image, before)


def test_the_channels_of_a_cascade_are_augmented_as_without_its_mask(no_mistakes):
    image, reference = masked_batch((9, 14, 11))
    results = []
    for batch, mask_classes in ((image, 3), (image[:, :1], 0)):
        torch.manual_seed(4)
        results.append(augment(batch, reference, Options(True, ("motion",), mask_classes), [Mirror(0)]))
    assert torch.equal(results[0][0][:, :1], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("shape", SHAPES)
def test_mistakes_are_made_in_some_masks_and_never_in_a_reference(shape, no_mistakes, monkeypatch):
    image, reference = masked_batch(shape, count=200)
    results = []
    for make in (lambda mask, num_classes: None, make_mistakes):
        monkeypatch.setattr("pipeline.nn.augment.make_mistakes", make)
        torch.manual_seed(2)
        results.append(augment(image, reference, Options(False, (), mask_classes=3), []))
    (right, expected), (wrong, moved) = results
    assert torch.equal(moved, expected)
    assert torch.equal(right[:, :1], wrong[:, :1])
    assert set(wrong[:, 1].unique().tolist()) == {0, 1, 2}
    is_changed = (right[:, 1] != wrong[:, 1]).flatten(1).any(dim=1).float().mean()
    assert 0.4 < is_changed < 0.6, "0.4, and three quarters of 0.2 among the others: 0.49"


def test_mistakes_are_the_same_with_the_same_seed_and_different_with_another():
    results = []
    for seed in (5, 5, 6):
        _, mask = masked_batch((9, 14, 11))
        torch.manual_seed(seed)
        make_mistakes(mask, 3)
        results.append(mask)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def blocks(shape):
    """(1, …) classes: 1 and 2 touch each other, 2 touches the border."""
    classes = torch.zeros(1, *shape, dtype=torch.int16)
    classes[(0, ..., slice(4, 8), slice(3, 6))] = 1
    classes[(0, ..., slice(5, None), slice(6, 9))] = 2
    return classes


@pytest.mark.parametrize("shape", [(9, 14, 11), (14, 11)])
@pytest.mark.parametrize("is_undone", [False, True])
@pytest.mark.parametrize("radius", [1, 2])
def test_one_label_is_dilated_eroded_closed_or_opened_as_scipy_does_it(shape, is_undone, radius):
    """What lies outside a patch is neither label nor background."""
    classes, size = (blocks(shape) == 1).short(), 2 * radius + 1
    mask = classes[0].numpy().astype(float)
    grown = ndimage.maximum_filter(mask, size, mode="nearest")
    shrunk = ndimage.minimum_filter(mask, size, mode="nearest")
    if is_undone:
        grown, shrunk = (
            ndimage.minimum_filter(grown, size, mode="nearest"),
            ndimage.maximum_filter(shrunk, size, mode="nearest"),
        )
    for sign, expected in ((1, grown), (-1, shrunk)):
        found = grow_and_shrink(classes, torch.tensor([0, sign]), radius, is_undone=is_undone)
        assert found.dtype == classes.dtype
        assert np.array_equal(found[0].numpy(), expected)


def test_a_label_grows_into_the_background_and_into_labels_that_shrink_or_rank_lower():
    classes = blocks((14, 11))
    both = grow_and_shrink(classes, torch.tensor([0, 1, 2]), 1, is_undone=False)
    assert ((both == 2) >= (classes == 2)).all() and ((both == 2) & (classes == 1)).any()
    one = grow_and_shrink(classes, torch.tensor([0, -1, 2]), 1, is_undone=False)
    assert ((one == 1) <= (classes == 1)).all() and (one == 1).sum() < (classes == 1).sum()
    assert torch.equal(one == 2, both == 2)


def test_slices_of_a_flat_volume_do_not_grow_into_each_other():
    mask = torch.zeros(40, 1, 3, 14, 16, dtype=torch.int16)
    mask[:, :, 1, 5:9, 5:9] = 1
    torch.manual_seed(0)
    make_mistakes(mask, 2)
    assert (mask[:, :, 1] == 1).flatten(1).sum(1).max() > 16, "some have grown"
    assert not mask[:, :, ::2].any()


# From stage to stage


def map_here(work, *cases, **_):
    """Processes are not forked while torch is at work in this one."""
    return list(map(work, *cases))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Both configurations of a cohort of four phantoms in two folds, trained for two steps each."""
    folder = tmp_path_factory.mktemp("cascade")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("pipeline.preprocess.map_cases", map_here)
        files = Results("c")
        write_cohort(folder / "scans", num_cases=4, size=0.5)
        tiny = {"features": 4, "patch_size": [16, 16, 16], "batch_size": 2}
        config = complete(
            {
                **{"name": "c", "cohort": "scans", "folds": 2},
                "configurations": {LOW: {**tiny, "spacing_mm": [7, 7, 7]}, FULL: tiny},
                "train": {"iterations": 2, "compile": False},
            }
        )
        keys = ("layout", "folds", "seed", "labels", "channels", "ignore_label", "task")
        discover.main("c", "scans", json.dumps({**{key: config[key] for key in keys}, "regions": []}))
        check("c", json.dumps({key: config[key] for key in ("folds", "seed")}))
        fingerprint.main("c")
        described, cohort = records.read_json(files.fingerprint), records.read_cohort(files.cohort)
        for name in config["configurations"]:
            plan = plan_configuration(described, cohort, name, settings_of(config, name), 8)
            plan = dataclasses.replace(plan, widths=(Width(4, 0.01),))
            records.write_json(files.plan(name), dataclasses.asdict(plan))
            for fold in range(2):
                preprocess("c", name, fold)
            records.write_json(files.inference(name), dataclasses.asdict(Setting(1, 0.5, mirror=False)))
            for fold in range(2):
                train("c", name, fold, json.dumps(config["train"]), device="cpu")
                predict("c", name, fold, PREDICT, device="cpu")
        records.write_json(files.choice, {"for_new_scans": [FULL]})
    return folder


PREDICT = json.dumps({"train_mirror": [], "memory_gib": 8})


def test_a_cascade_is_trained_on_out_of_fold_masks_and_predicts_on_the_grid_of_each_scan(finished, monkeypatch):
    monkeypatch.chdir(finished)
    files = Results("c")
    plan = read_plan(files.plan(FULL))
    for case in records.read_cases(files.checked_cases):
        mask, _ = read_labels_ras(files.mask(LOW, case.case))
        shape, box = mask.shape, load_placement(files.arrays(FULL, case.case)).box
        image = load_image(files.arrays(FULL, case.case))
        assert len(image) == plan.num_channels == 2
        assert {plan.labels[int(index)] for index in np.unique(image[1])} <= set(np.unique(mask))
        share = (image[1] > 0).mean(), (mask[tuple(slice(*part) for part in box)] > 0).mean()
        assert share[0] == pytest.approx(share[1], abs=0.03)
        assert nib.load(files.mask(FULL, case.case)).shape == nib.load(case.channels[0]).shape
        assert sorted(shape) == sorted(nib.load(case.channels[0]).shape)


def test_a_changed_mask_is_noticed_before_a_cascade_reads_it(finished, monkeypatch):
    monkeypatch.chdir(finished)
    files = Results("c")
    case = next(case for case in records.read_cases(files.checked_cases) if case.fold == 0)
    path = files.mask(LOW, case.case)
    before = path.read_bytes()
    nib.save(nib.load(case.label), path)
    try:
        with pytest.raises(CohortError, match="changed since"):
            preprocess("c", FULL, 0)
    finally:
        path.write_bytes(before)


def test_new_scans_get_the_mask_before_first_from_the_models_of_all_folds(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    files = Results("c")
    write_cohort(Path("new"), num_cases=2, seed=7, size=0.5)
    settings = json.dumps({**json.loads(PREDICT), "uncertainty": True, "asked": {}})
    segment.main("c", "new", "0,1", settings, device="cpu")
    assert "2 scans, 2 masks in results/c/segment are new" in capsys.readouterr().out
    for path in sorted(Path("new/imagesTr").iterdir()):
        name = path.name.removesuffix(".nii.gz")
        assert nib.load(files.segmented(name)).shape == nib.load(path).shape
        assert nib.load(files.uncertainty(name, "disagreement")).shape == nib.load(path).shape
        assert {FULL, LOW} <= records.read_json(files.segment_record(name))["made_of"].keys()
    assert segment.with_previous(["2d", FULL, LOW]) == ["2d", FULL, LOW]
