import dataclasses
import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest

from pipeline import records
from pipeline.budget import fit_budget
from pipeline.config import FOR_ALL, complete, settings_of
from pipeline.errors import PlanError
from pipeline.fit import Measured
from pipeline.paths import Results
from pipeline.plan import (
    Width,
    digest,
    is_edited,
    measure_step,
    plan_configuration,
    plan_from_json,
    read_plan,
    with_measured,
)
from pipeline.plan.__main__ import main
from pipeline.records import Cohort
from tests.test_preprocess import make_plan

COHORT = Cohort("hippocampus", "MSD", {0: "background", 1: "anterior", 2: "posterior"}, {0: "MRI"})
WIDTHS = (Width(8, 0.05), Width(16, 0.15), Width(32, 0.45))


def make_fingerprint(spacing_mm=(1.0, 1.0, 1.0), shape=(35, 50, 36), num_cases=260, nonzero=1.0, channel="MRI"):
    intensity = dict(mean=0, median=0, std=1, minimum=0, maximum=1, percentile_00_5=0, percentile_99_5=1)
    case = {"spacing_mm": spacing_mm, "shape": shape, "shape_nonzero": shape}
    return {
        "num_cases": num_cases,
        "target_rms": None,
        "median_fraction_nonzero": nonzero,
        "channels": [{"channel": channel, **intensity}],
        "cases": [case] * num_cases,
    }


def settings(**given):
    """A configuration as the schema completes it and the plan stage gets it."""
    for_all = {key: given.pop(key) for key in FOR_ALL if key in given}
    return settings_of(complete({"name": "a", "cohort": "demo", "configurations": {"b": given}, **for_all}), "b")


def test_hippocampus_gets_nnunets_plan_from_its_fingerprint():
    plan = plan_configuration(make_fingerprint(), COHORT, "3d_fullres", settings(dims=3), 8)
    assert (plan.axes, plan.patch_size, plan.batch_size) == ("zyx", (40, 56, 40), 9)
    flat = plan_configuration(make_fingerprint(), COHORT, "2d", settings(dims=2), 8)
    assert (flat.patch_size, flat.batch_size, flat.spacing_mm) == ((56, 40), 366, (None, 1.0, 1.0))


def test_the_coarsest_axis_leads_and_the_numbers_follow_it():
    fingerprint = make_fingerprint(spacing_mm=(3.0, 1.0, 1.2), shape=(40, 200, 150))
    plan = plan_configuration(fingerprint, COHORT, "3d_fullres", settings(dims=3), 8)
    assert (plan.axes, plan.spacing_mm, plan.median_shape) == ("xzy", (3.0, 1.2, 1.0), (40, 150, 200))


def test_the_ignore_label_of_the_cohort_is_no_output():
    plan = plan_configuration(make_fingerprint(), replace(COHORT, ignore_label=9), "2d", settings(dims=2), 8)
    assert (plan.labels, plan.ignore_label, plan.num_outputs) == ((0, 1, 2), 9, 3)


def test_regions_of_the_cohort_are_the_outputs():
    cohort = replace(COHORT, regions={"whole": [1, 2], "posterior": [2]})
    plan = plan_configuration(make_fingerprint(), cohort, "2d", settings(dims=2), 8)
    assert (plan.regions, plan.num_outputs, plan.has_background) == (((1, 2), (2,)), 2, False)
    assert plan_from_json(json.loads(json.dumps(asdict(plan)))) == plan


def test_every_decision_has_its_reason():
    plan = plan_configuration(make_fingerprint(), COHORT, "3d_fullres", settings(dims=3), 8)
    decided = {"spacing_mm", "axes", "median_shape", "patch_size", "batch_size", "strides", "normalisation", "widths"}
    assert decided <= plan.reasons.keys()


def test_a_plan_survives_json():
    plan = plan_configuration(make_fingerprint(), COHORT, "2d", settings(dims=2), 8)
    assert plan_from_json(json.loads(json.dumps(asdict(plan)))) == plan


def test_what_the_user_sets_is_what_the_plan_says():
    wanted = settings(dims=3, patch_size=[30, 32, 32], batch_size=3, spacing_mm=[1, 2, 1])
    plan = plan_configuration(make_fingerprint(), COHORT, "mine", wanted, 8)
    assert (plan.batch_size, plan.axes, plan.spacing_mm) == (3, "yzx", (2, 1, 1))
    assert plan.patch_size == (32, 32, 32), "padded until every stride divides it"
    assert "set in the configuration" in plan.reasons["patch_size"]


def test_ct_is_read_in_hounsfield_units_and_cropped_mr_inside_the_patient():
    def scheme(**changes):
        plan = plan_configuration(make_fingerprint(**changes), COHORT, "2d", settings(dims=2), 8)
        return plan.normalisation

    assert scheme(channel="CT") == ("ct",)
    assert scheme(channel="T2") == ("zscore",)
    assert scheme(channel="T2", nonzero=0.5) == ("zscore_nonzero",)


def test_scans_too_small_for_a_network_are_refused_with_what_to_do():
    with pytest.raises(
        PlanError, match=re.escape("6 × 6 × 6 voxels has 1 stages, 3 expected. The scans are too small")
    ):
        plan_configuration(make_fingerprint(shape=(6, 6, 6)), COHORT, "3d_fullres", settings(dims=3), 8)


def test_large_scans_get_a_low_resolution_of_which_a_patch_sees_a_quarter():
    """Liver-like: the published 128^3 voxels at full resolution see 2 % of a scan."""
    large = make_fingerprint(spacing_mm=(0.7676, 0.7676, 1.0), shape=(512, 512, 432), num_cases=131)
    full = plan_configuration(large, COHORT, "3d_fullres", settings(dims=3), 8)
    low = plan_configuration(large, COHORT, "3d_lowres", settings(dims=3), 8)
    assert low.left_out is None
    assert low.axes == full.axes == "zyx"
    assert all(coarse > 1.8 * fine for coarse, fine in zip(low.spacing_mm, full.spacing_mm, strict=True))
    assert 0.24 < np.prod(low.patch_size) / np.prod(low.median_shape) < 0.3
    assert "grown until a patch covers" in low.reasons["spacing_mm"]
    assert (full.is_batch_dice, low.is_batch_dice) == (True, False)


def test_low_resolution_is_left_out_with_its_reason_where_a_patch_sees_enough():
    small = plan_configuration(make_fingerprint(), COHORT, "3d_lowres", settings(dims=3), 8)
    assert small.left_out == "a patch at full resolution covers 100% of the median scan, a quarter or more"
    assert small.is_batch_dice is False
    assert plan_configuration(make_fingerprint(), COHORT, "2d", settings(dims=2), 8).is_batch_dice


def test_a_low_resolution_whose_spacing_is_set_is_never_left_out():
    wanted = settings(dims=3, spacing_mm=[2, 2, 2], patch_size=[16, 16, 16])
    plan = plan_configuration(make_fingerprint(), COHORT, "3d_lowres", wanted, 8)
    assert (plan.left_out, plan.spacing_mm) == (None, (2, 2, 2))


@pytest.mark.parametrize(("preset", "batch_size"), [("M", 58), ("L", 59)])
def test_residual_networks_are_planned_by_their_preset(preset, batch_size):
    """L is published for 24 GiB, where it gets 178; a third of them in a third of the memory."""
    wanted = settings(dims=3, network="residual_unet", preset=preset)
    plan = plan_configuration(make_fingerprint(), COHORT, "residual", wanted, 8)
    assert (plan.patch_size, plan.batch_size) == ((40, 56, 40), batch_size)
    assert "at most 100% of the cohort" in plan.reasons["batch_size"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"patch_size": [8, 8, 8]}, "a patch of 8 × 8 × 8 voxels has 2 stages, 3 expected. Set a larger `patch_size`."),
        ({"stages": 5}, "a patch of 40 × 56 × 40 voxels has 4 stages, 5 expected. Set `stages` from 3 up, and a"),
        ({"stages": 2}, "has 2 stages, 3 expected. Set `stages` from 3 up"),
        ({"spacing_mm": [9, 9, 9]}, "The scans are too small at (9.0, 9.0, 9.0) mm: set a finer `spacing_mm`."),
        (
            {"normalisation": {3: "none"}},
            "normalisation has channel 3, yet the cohort has 0 (MRI). Correct the number.",
        ),
        ({"bias_correction": [1]}, "bias_correction has channel 1, which is not one of 1: MR expected. Remove it."),
        (
            {"bias_correction": [0], "normalisation": {0: "ct"}},
            "bias_correction has channel 0, which is CT, whose units are absolute: MR expected. Remove it.",
        ),
    ],
)
def test_settings_that_no_network_fits_are_one_line_with_what_to_do(given, message):
    with pytest.raises(PlanError, match=re.escape(message)) as caught:
        plan_configuration(make_fingerprint(), COHORT, "3d_fullres", settings(dims=3, **given), 8)
    assert "\n" not in str(caught.value)


def test_the_number_of_stages_can_be_set():
    plan = plan_configuration(make_fingerprint(), COHORT, "shallow", settings(dims=3, stages=3), 8)
    assert (len(plan.strides), plan.patch_size) == (3, (36, 52, 36))
    assert "after the 3 stages that are set" in plan.reasons["strides"]


def test_brightness_is_made_even_and_scans_resampled_as_set_and_the_plan_says_so():
    plan = plan_configuration(make_fingerprint(), COHORT, "3d_fullres", settings(dims=3), 8)
    assert (plan.bias_corrected, plan.image_order) == ((), 3)
    wanted = settings(dims=3, bias_correction=[0], resampling="linear")
    plan = plan_configuration(make_fingerprint(), COHORT, "3d_fullres", wanted, 8)
    assert (plan.bias_corrected, plan.image_order) == ((0,), 1)
    assert plan.reasons["bias_corrected"].startswith("set in the configuration: N4")
    assert plan.reasons["image_order"] == "`resampling` is linear; label maps are resampled linearly"


def test_normalisation_is_by_modality_unless_it_is_set_for_the_channel():
    fingerprint = make_fingerprint(channel="CT", nonzero=0.5)
    fingerprint["channels"] += [{**fingerprint["channels"][0], "channel": name} for name in ("T2", "ADC")]
    cohort = Cohort("mixed", "MSD", COHORT.labels, {0: "CT", 1: "T2", 2: "ADC"})

    def schemes(**given):
        return plan_configuration(fingerprint, cohort, "2d", settings(dims=2, normalisation=given), 8).normalisation

    assert schemes() == ("ct", "zscore_nonzero", "zscore_nonzero")
    assert schemes(**{"2": "none", "0": "rescale"}) == ("rescale", "zscore_nonzero", "none")
    assert schemes(**{"0": "zscore"}) == ("zscore_nonzero", "zscore_nonzero", "zscore_nonzero")


def written(path, **changes):
    """A plan as the stage writes it, then edited."""
    content = json.loads(json.dumps(asdict(make_plan(widths=WIDTHS))))
    records.write_json(path, {**content, "digest": digest(content), **changes})
    return path


def test_a_plan_is_edited_when_it_says_something_else_not_when_it_is_laid_out_anew(tmp_path):
    path = written(tmp_path / "plan.json")
    assert not is_edited(path)
    path.write_text(json.dumps(json.loads(path.read_text()), indent=8, sort_keys=True))
    assert not is_edited(path)
    assert is_edited(written(tmp_path / "plan.json", batch_size=5))
    path.write_text("{")
    assert is_edited(path)


def write_cohort_of_plan(**changes):
    cohort = Cohort("a", "MSD", {0: "background", 2: "one", 5: "other"}, {0: "MRI"})
    records.write_cohort(Results("a").cohort, replace(cohort, **changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {0: "background", 2: "one"}}, "labels is (0, 2, 5), (0, 2) expected"),
        ({"regions": {"both": [2, 5]}}, "regions is (), ((2, 5),) expected"),
        ({"ignore_label": 9}, "ignore_label is None, 9 expected"),
        ({"channels": {0: "CT"}}, "channels is ('MRI',), ('CT',) expected"),
        (
            {"labels": {}, "task": "regression"},
            "task is segmentation, regression expected; labels is (0, 2, 5), () expected",
        ),
    ],
)
def test_an_edited_plan_does_not_survive_a_change_of_what_the_cohort_decides(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    path = written(Results("a").plan("3d_fullres"), batch_size=7)
    write_cohort_of_plan(**change)
    with pytest.raises(
        PlanError, match=re.escape(f"edited by hand for another cohort: {message}. Delete it")
    ) as caught:
        main("a", "3d_fullres", json.dumps(settings(dims=3)))
    assert "\n" not in str(caught.value)
    assert is_edited(path), "kept as it was"


def test_an_edited_plan_is_kept_and_the_log_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_cohort_of_plan()
    path = written(Results("a").plan("3d_fullres"), batch_size=7)
    before = path.read_bytes()
    main("a", "3d_fullres", json.dumps(settings(dims=3)))
    assert path.read_bytes() == before
    assert "was edited by hand and is kept. Delete it to plan anew." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"batch_size": "many"}, "batch_size is 'many', int expected"),
        ({"batch_size": 0}, "batch_size is 0, 1 or more expected"),
        ({"batch_size": True}, "batch_size is True, int expected"),
        (
            {"patch_size": [16, 20, 18]},
            "patch_size is 16 × 20 × 18, multiples of the strides' products 2 × 4 × 4 expected",
        ),
        ({"patch_size": [16, 24]}, "patch_size has 2 numbers, 3 expected"),
        ({"patch_size": 16}, "patch_size is 16, a list expected"),
        ({"patch_size": [16, "x", 16]}, "patch_size[1] is 'x', int expected"),
        ({"strides": [[1, 1, 1], [2, 2, 2]]}, "strides has 2 stages, kernels 3, as many expected"),
        ({"strides": [[1, 1, 1], [2, 2], [2, 2, 2]]}, "a stage of strides or kernels has not 3 numbers of 1 or more"),
        (
            {"strides": [[1, 1, 1], [0, 2, 2], [2, 2, 2]]},
            "a stage of strides or kernels has not 3 numbers of 1 or more",
        ),
        ({"network": "u-net"}, "network is 'u-net', one of unet, residual_unet"),
        ({"bias_corrected": [1]}, "bias_corrected is (1,), numbers below 1 expected"),
        ({"image_order": 6}, "image_order is 6, 0 to 5 expected"),
        ({"normalisation": ["ctt"]}, "normalisation[0] is 'ctt', one of ct, zscore"),
        ({"normalisation": ["none", "none"]}, "normalisation has 2 entries, 1 channels"),
        ({"axes": "xyy"}, "axes is 'xyy', an order of xyz expected"),
        ({"dims": 4}, "dims is 4, 2 or 3 expected"),
        ({"spacing_mm": [1, 1]}, "spacing_mm has 2 numbers, 3 expected"),
        ({"widths": [{"features": 8}]}, "widths[0] has no seconds_per_sample"),
        ({"widths": []}, "widths is empty, one or more with features and seconds_per_sample expected"),
        ({"widths": [8]}, "widths[0] is 8, keys with values expected"),
        ({"reasons": []}, "reasons is [], keys with values expected"),
        ({"patchsize": 3}, "unknown patchsize"),
    ],
)
def test_an_edit_that_no_stage_could_use_is_one_line_with_what_to_do(tmp_path, edit, message):
    path = written(tmp_path / "plan.json", **edit)
    with pytest.raises(PlanError, match=re.escape(message)) as caught:
        read_plan(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith("Correct it, or delete it to plan anew.")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"dims" 3}', "Expecting ':' delimiter"), ("[1, 2]", "a list found, keys with values expected")],
)
def test_a_plan_that_is_no_json_object_is_edited_and_one_line(tmp_path, text, message):
    path = tmp_path / "plan.json"
    path.write_text(text)
    assert is_edited(path)
    assert records.left_out(path) is None, "the stage that reads it says what is wrong"
    with pytest.raises(PlanError, match=message) as caught:
        read_plan(path)
    assert str(caught.value).endswith("Correct it, or delete it to plan anew.")
    assert "\n" not in str(caught.value)


def test_a_step_is_measured_on_the_real_machine_and_timed_if_its_memory_is_within_the_limit():
    """The outputs of 61 labels are most of what a narrow network takes."""
    plan = make_plan(patch_size=(32, 32, 32), batch_size=4)
    many_labels = replace(plan, labels=tuple(range(61)))
    within = measure_step(plan, widths=[4], memory_gib=8, device="cpu", threads=1, is_deterministic=True)
    above = measure_step(many_labels, widths=[4], memory_gib=1e-3, device="cpu", threads=1)
    assert within.seconds_per_sample[4] > 0
    assert within.forms[4].endswith(" channels_last_3d"), "the usual one, for a deterministic run"
    assert above.seconds_per_sample == {}
    assert 0 < within.gib < above.gib < 4


def test_what_was_measured_stands_in_the_plan_with_its_reason():
    plan = with_measured(
        make_plan(), Measured(2.34567, "cpu", {8: 0.1}, {8: "float32 contiguous_format"}), 16, memory_gib=2
    )
    assert (plan.memory_measured_gib, plan.widths) == (2.346, (Width(8, 0.1, "float32 contiguous_format", "cpu"),))
    assert plan.reasons["memory_measured_gib"] == (
        "peak of a training step on cpu, 16 features wide; over memory_gib, 2, for sizes are set or as small as they get"
    )
    with pytest.raises(PlanError, match="3d_fullres: no memory for a batch of 2 patches of 16 × 24 × 16 voxels"):
        with_measured(make_plan(), None, 16, memory_gib=2)


def test_a_short_budget_gets_a_narrow_network_and_a_long_one_a_wide_one():
    plan = make_plan(widths=WIDTHS, batch_size=9)
    short, middle, long = (fit_budget(plan, {"minutes": minutes}) for minutes in (1, 12, 60))
    assert [budget.width for budget in (short, middle, long)] == [8, 16, 32]
    assert short.batch_size == 2
    assert long.batch_size == 8
    assert "60 minutes hold about 8000 patches of 16 x 24 x 16 at width 32" in long.reason


def test_a_budget_of_a_few_steps_shrinks_the_patch_so_that_it_holds_more():
    plan = make_plan(widths=(Width(8, 2.0),), patch_size=(32, 96, 64), strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)))
    short, tiny, long = (fit_budget(plan, {"minutes": minutes}) for minutes in (10, 0.01, 60))
    assert short.patch_size == (32, 48, 64), "600 patches wanted, 300 held: the edge of most voxels is halved"
    assert tiny.patch_size == (4, 12, 8), "at least two voxels per axis are left at the coarsest resolution"
    assert long.patch_size == plan.patch_size
    assert "patches of 32 x 48 x 64" in short.reason
    assert fit_budget(dataclasses.replace(plan, network="unetr"), {"minutes": 0.1}).patch_size == plan.patch_size


def test_epochs_and_iterations_take_the_widest_network_and_the_planned_batch():
    plan = make_plan(widths=WIDTHS, batch_size=9)
    assert fit_budget(plan, {"epochs": 2}).steps == 500
    by_steps = fit_budget(plan, {"iterations": 30})
    assert (by_steps.width, by_steps.batch_size, by_steps.steps) == (32, 9, 30)
    assert by_steps.progress(15, elapsed_s=1e9) == 0.5
