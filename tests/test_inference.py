import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from pipeline import inference, records
from pipeline.config import complete
from pipeline.flow import Run
from pipeline.inference import Tried, candidates, choose, measure, score_slabs, spread, with_compiler
from pipeline.nn.checkpoints import Model, save_model
from pipeline.nn.networks import build_network
from pipeline.paths import Results
from pipeline.preprocess import Prepared, save_prepared
from pipeline.records import Case
from pipeline.windows import Setting, read_setting
from tests.dense import as_it_is, predict_densely
from tests.test_preprocess import make_plan
from tests.test_train import CPU

REFERENCE = Setting(1, 0.5, False)
QUICK = Setting(2, 0.25, False)


def wanted(**predict):
    return complete({"name": "a", "cohort": "demo", "predict": predict, "train": {"mirror": ["x"]}})["predict"]


def tried(setting, score, seconds, voxels=1):
    return Tried(setting, score, seconds, voxels, num_cases=1)


def test_the_reference_comes_first_and_alone_if_so_wanted():
    assert candidates(wanted(inference="reference"), has_mirrors=True, is_fixed=False) == [Setting(1, 0.5, True)]
    offered = candidates(wanted(), has_mirrors=True, is_fixed=False)
    assert offered[0] == Setting(1, 0.5, True)
    assert Setting(None, 0.25, False) in offered
    assert len(set(offered)) == len(offered)


def test_what_the_user_set_is_not_tried_otherwise():
    offered = candidates(wanted(overlap=0.75, window=1.5), has_mirrors=True, is_fixed=False)
    assert {(setting.overlap, setting.window) for setting in offered} == {(0.75, 1.5)}
    assert {setting.mirror for setting in offered} == {True, False}
    assert all(setting.mirror for setting in candidates(wanted(mirror=True), has_mirrors=True, is_fixed=False))
    assert not any(setting.mirror for setting in candidates(wanted(mirror=True), has_mirrors=False, is_fixed=False))


def test_a_network_of_a_fixed_patch_is_offered_no_other_window():
    assert {setting.window for setting in candidates(wanted(), has_mirrors=False, is_fixed=True)} == {1}


def test_the_fastest_setting_within_the_tolerance_is_taken():
    rows = [tried(REFERENCE, 0.9, 10), tried(QUICK, 0.8995, 2), tried(Setting(None, 0.25, False), 0.898, 1)]
    setting, reason = choose([one.setting for one in rows], rows, is_deterministic=False)
    assert setting == QUICK
    assert reason == "5.0 times as fast as the reference, score 0.8995, a loss of 0.0005"


def test_nothing_slower_than_the_reference_is_taken_however_good():
    rows = [tried(REFERENCE, 0.9, 10), tried(QUICK, 0.95, 11)]
    setting, reason = choose([one.setting for one in rows], rows, is_deterministic=False)
    assert (setting, reason) == (REFERENCE, "no faster setting comes within 0.001 of its score of 0.9000")


def test_a_deterministic_run_asks_no_clock():
    rows = [tried(REFERENCE, 0.9, 1, voxels=100), tried(QUICK, 0.9, 5, voxels=20)]
    assert choose([one.setting for one in rows], rows, is_deterministic=True)[0] == QUICK


def test_without_a_labelled_case_the_reference_is_taken():
    for rows in ([], [tried(REFERENCE, float("nan"), 1), tried(QUICK, float("nan"), 0.5)]):
        setting, reason = choose([REFERENCE, QUICK], rows, is_deterministic=False)
        assert setting == REFERENCE
        assert "no labelled case" in reason
    assert choose([REFERENCE], [], is_deterministic=False) == (REFERENCE, "as set, nothing was measured")


def test_cases_are_spread_evenly():
    cases = [Case(f"{index}", "s", 0, None, ()) for index in range(20)]
    assert [case.case for case in spread(cases, 4)] == ["0", "5", "10", "15"]
    assert spread(cases[:3], 4) == cases[:3]


def test_the_score_of_slabs_is_the_mean_dsc_of_labels_that_are_somewhere():
    classes = np.zeros((4, 2, 2), np.uint16)
    classes[:2] = 1
    found = np.zeros((3, 4, 2, 2), np.float32)
    found[0, 1:] = found[1, :1] = 0.9
    halves = [found[:, :3], found[:, 3:]]
    assert score_slabs(halves, classes, make_plan()) == pytest.approx(2 * 4 / (4 + 8))
    nothing = np.zeros((3, 4, 2, 2), np.float32)
    nothing[0] = 1
    assert np.isnan(score_slabs([nothing], 0 * classes, make_plan()))


def test_ignored_voxels_do_not_count():
    plan = make_plan(ignore_label=9)
    classes = np.full((2, 2, 2), 3, np.uint16)
    classes[0] = 1
    found = np.zeros((3, 2, 2, 2), np.float32)
    found[1] = 1
    assert score_slabs([found], classes, plan) == 1


def test_the_score_of_values_is_one_minus_their_relative_error():
    values = np.full((3, 2, 2), 2, np.float32)
    slabs = [values[None, :2] + 0.5, values[None, 2:] - 0.5]
    assert score_slabs(slabs, values, make_plan(task="regression", labels=())) == pytest.approx(0.75)


def small_model():
    torch.manual_seed(0)
    plan = make_plan()
    return Model(build_network(plan, 4).eval(), plan, 4)


def test_settings_that_cut_every_scan_alike_are_tried_once():
    image = np.random.default_rng(0).normal(size=(1, 16, 24, 16)).astype(np.float32)
    cases = [(image, np.ones((16, 24, 16), np.uint16))]
    rows = measure(small_model(), cases, [REFERENCE, QUICK, Setting(None, 0.5, False)], (), CPU, 8)
    assert [row.setting for row in rows] == [REFERENCE], "one window covers all, whatever it would overlap by"
    assert rows[0].voxels == 16 * 24 * 16
    image = np.random.default_rng(0).normal(size=(1, 40, 24, 16)).astype(np.float32)
    rows = measure(small_model(), [(image, np.ones((40, 24, 16), np.uint16))], [REFERENCE, QUICK], (), CPU, 8)
    assert [row.setting for row in rows] == [REFERENCE, QUICK]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, g++")
def test_a_compiled_network_predicts_the_same_and_is_used_where_the_scans_pay_for_it():
    assert Setting(1, 0.5, False, compile_s=20, saved_s=3).for_scans(7).compile_s == 20
    assert Setting(1, 0.5, False, compile_s=20, saved_s=3).for_scans(6).compile_s is None
    model, image = small_model(), np.random.default_rng(0).normal(size=(1, 16, 24, 30)).astype(np.float32)
    plain, compiled = (predict_densely([model], image, CPU, is_compiled=is_compiled) for is_compiled in (False, True))
    assert np.abs(plain - compiled).max() < 1e-4


def test_what_the_compiler_gains_is_measured_and_a_machine_without_it_goes_on(monkeypatch, capsys):
    clock = [0.0]

    def predict_slabs(_, image, __, window):
        assert image.shape == (1, 32, 48, 32)
        clock[0] += 0.5 if window.is_compiled else 2
        if window.is_compiled and clock[0] < 1:
            clock[0] += 20
        yield image

    monkeypatch.setattr(inference, "predict_slabs", predict_slabs)
    monkeypatch.setattr(inference.time, "perf_counter", lambda: clock[0])
    found = with_compiler(QUICK, small_model(), CPU, seconds_per_case=8)
    assert (found.compile_s, found.saved_s) == (20, 6)

    monkeypatch.setattr(inference, "predict_slabs", lambda *_: 1 / 0)
    assert with_compiler(QUICK, small_model(), CPU, seconds_per_case=8) == QUICK
    assert "compiler: not possible here: division by zero" in capsys.readouterr().out


def test_the_stage_writes_what_it_tried_and_predict_reads_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files, model = Results("tiny"), small_model()
    save_model(files.model("3d_fullres", 0), model.network.state_dict(), 4, model.plan)
    records.write_cases(files.checked_cases, [Case("a", "a", 0, tmp_path / "a.nii", (tmp_path / "a.nii",))])
    image = np.random.default_rng(0).normal(size=(1, 33, 24, 32)).astype(np.float32)
    classes = (image[0] > 1).astype(np.uint16)
    row = {"shape_nonzero": [32, 24, 33], "spacing_mm": [0.7, 1.0, 2.5]}
    records.write_json(files.fingerprint, {"cases": [row]})
    save_prepared(Prepared(image, classes, as_it_is(classes.shape)), files.arrays("3d_fullres", "a"), model.plan)
    settings = json.loads(Run({"name": "tiny", "cohort": "demo"}).inference_settings)
    inference.main("tiny", "3d_fullres", 0, json.dumps(settings), "cpu")
    written = records.read_json(files.inference("3d_fullres"))
    assert written["tried"][0]["window"] == 1
    assert 500 < written["mem_mb"] < 2000
    assert written["device"].startswith("CPU, ")
    assert read_setting(files.inference("3d_fullres")) in [
        Setting(row["window"], row["overlap"], row["mirror"]) for row in written["tried"]
    ]
    assert dataclasses.asdict(read_setting(files.inference("3d_fullres"))).items() <= written.items()
