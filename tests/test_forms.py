import dataclasses

import pytest
import torch

from pipeline.budget import fit_budget
from pipeline.nn import forms
from pipeline.nn.device import Device
from pipeline.nn.probe import time_widths
from pipeline.plan import Width
from tests.test_train import CPU, SETTINGS, tiny_plan

PLANNED = "float32 contiguous_format"
COMPILED = "float32 channels_last_3d compiled"
LONG = {"minutes": 600}
BFLOAT16_CPU = Device(torch.device("cpu"), torch.bfloat16)


def make_plan(form=PLANNED, device="cpu"):
    return tiny_plan(widths=(Width(4, 0.5, form, device),))


def choose(seconds, budget=LONG, **settings):
    """The choice where each form takes the seconds given by its name, the reason, and the forms that were measured."""
    plan, asked = make_plan(), []

    def measure(form):
        asked.append(form.name)
        if isinstance(seconds[form.name], Exception):
            raise seconds[form.name]
        return seconds[form.name]

    wanted = {**SETTINGS, "deterministic": False, **settings}
    form, reason = forms.choose_form(plan, fit_budget(plan, budget), wanted, CPU, measure)
    return form.name, reason, asked


@pytest.mark.parametrize("name", ["float32 contiguous_format", "bfloat16 channels_last_3d compiled"])
def test_a_form_is_known_by_its_name(name):
    assert forms.named_form(name).name == name


def test_the_compiler_is_used_where_it_is_faster_and_the_figures_are_told():
    name, reason, _ = choose({PLANNED: 2.0, COMPILED: 1.5})
    assert (name, reason) == (COMPILED, "as planned 2.000 s per step, compiled 1.500 s")
    assert choose({PLANNED: 1.0, COMPILED: 1.5})[0] == PLANNED


def test_the_compiler_is_tried_only_where_its_time_can_pay():
    name, reason, asked = choose({}, budget={"minutes": 10})
    assert (name, asked) == (PLANNED, [])
    assert "too short to try" in reason


def test_what_the_user_says_about_compiling_is_done():
    assert choose({}, compile=True)[::2] == (COMPILED, [])
    assert choose({}, compile=False)[::2] == (PLANNED, [])


def test_a_machine_that_cannot_compile_says_so_and_trains():
    name, reason, _ = choose({PLANNED: 2.0, COMPILED: RuntimeError("no g++\nlong story")})
    assert name == PLANNED
    assert reason.endswith("compiling is not possible here: no g++")


def test_a_deterministic_training_asks_no_clock():
    assert choose({}, deterministic=True)[::2] == (PLANNED, [])


def test_a_plan_of_another_kind_of_device_or_unmeasured_gives_the_usual_form():
    usual = "bfloat16 channels_last_3d"
    for plan in (make_plan(device="cuda"), make_plan(form="", device=""), tiny_plan(widths=())):
        assert forms.planned_form(plan, 4, BFLOAT16_CPU).name == usual
    assert forms.planned_form(make_plan(), 4, BFLOAT16_CPU).name == PLANNED
    assert forms.usual_form(CPU, 2).name == "float32 channels_last"


@pytest.mark.parametrize(
    ("planned", "is_compiled", "expected"),
    [
        ("float32 channels_last_3d", False, "float32 contiguous_format"),
        ("bfloat16 channels_last_3d", False, "bfloat16 channels_last_3d"),
        ("float32 contiguous_format", True, "float32 channels_last_3d"),
    ],
)
def test_a_cpu_predicts_in_the_layout_that_is_faster_without_gradients(planned, is_compiled, expected):
    form = forms.prediction_form(make_plan(form=planned), 4, CPU, is_compiled=is_compiled)
    assert form.name == expected


def test_a_cpu_with_bfloat16_is_asked_whether_it_gains_and_one_without_is_not():
    assert len(forms.candidate_forms(BFLOAT16_CPU, 3)) == 4
    assert {form.precision for form in forms.candidate_forms(CPU, 3)} == {torch.float32}


def test_every_width_is_measured_with_the_form_that_it_is_fastest_in():
    seconds, names = time_widths(tiny_plan(), [4, 6], CPU)
    assert seconds.keys() == names.keys() == {4, 6}
    assert all(value > 0 for value in seconds.values())
    assert all(forms.named_form(name).precision is torch.float32 for name in names.values())


def test_in_a_deterministic_run_no_clock_chooses_the_form():
    usual = forms.usual_form(CPU, 3).name
    assert time_widths(tiny_plan(), [4, 6], CPU, is_deterministic=True)[1] == {4: usual, 6: usual}


def test_the_expected_time_of_a_number_of_steps_comes_from_the_plan():
    plan = dataclasses.replace(make_plan(), batch_size=2)
    assert forms.expected_seconds(plan, fit_budget(plan, {"iterations": 10})) == 10 * 2 * 0.5
    assert forms.expected_seconds(plan, fit_budget(plan, {"minutes": 2})) == 120


def test_a_device_without_a_gpu_has_no_memory_of_its_own():
    assert CPU.free_bytes == 0


def test_a_form_that_is_far_slower_than_another_is_given_up_after_two_steps(monkeypatch):
    clock = [0.0]

    def training_step(form, *_):
        def take_step(_):
            clock[0] += 0.25

        return take_step

    monkeypatch.setattr(forms, "training_step", training_step)
    monkeypatch.setattr(forms.time, "perf_counter", lambda: clock[0])
    for rival_s, steps in ((0.15, 2), (0.22, 3)):
        clock[0] = 0.0
        assert forms.seconds_per_step(forms.named_form(PLANNED), make_plan(), 4, 2, CPU, rival_s=rival_s) == 0.25
        assert clock[0] == 0.25 * steps


def test_the_time_that_the_compiler_takes_is_not_taken_for_a_step(monkeypatch):
    clock = [0.0]

    def training_step(form, *_):
        durations = iter([18.0] + [0.5] * 9)

        def take_step(_):
            clock[0] += next(durations)

        return take_step

    monkeypatch.setattr(forms, "training_step", training_step)
    monkeypatch.setattr(forms.time, "perf_counter", lambda: clock[0])
    assert forms.seconds_per_step(forms.named_form(COMPILED), make_plan(), 4, 2, CPU) == 0.5
    clock[0] = 0.0
    assert forms.seconds_per_step(forms.named_form(PLANNED), make_plan(), 4, 2, CPU) == 18.0
