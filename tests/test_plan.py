import dataclasses
import json
import re
from dataclasses import asdict, replace

import pytest

from pipeline.budget import fit_budget
from pipeline.config import complete
from pipeline.errors import PlanError
from pipeline.plan import Width, plan_configuration, plan_from_json
from pipeline.records import Cohort
from tests.test_preprocess import make_plan

COHORT = Cohort("hippocampus", "MSD", {0: "background", 1: "anterior", 2: "posterior"}, {0: "MRI"})
WIDTHS = (Width(8, 0.05), Width(16, 0.15), Width(32, 0.45))


def make_fingerprint(spacing_mm=(1.0, 1.0, 1.0), shape=(35, 50, 36), num_cases=260, nonzero=1.0, channel="MRI"):
    intensity = dict(mean=0, median=0, std=1, minimum=0, maximum=1, percentile_00_5=0, percentile_99_5=1)
    case = {"spacing_mm": spacing_mm, "shape": shape, "shape_nonzero": shape}
    return {
        "num_cases": num_cases,
        "median_fraction_nonzero": nonzero,
        "channels": [{"channel": channel, **intensity}],
        "cases": [case] * num_cases,
    }


def settings(**given):
    """A configuration as the schema completes it and the plan stage gets it."""
    normalisation = given.pop("normalisation", {})
    config = complete({"name": "a", "cohort": "demo", "configurations": {"b": given}, "normalisation": normalisation})
    return {**config["configurations"]["b"], "normalisation": config["normalisation"]}


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
