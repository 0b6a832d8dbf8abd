"""What the Snakefile asks of a configuration."""

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import flow
from pipeline.flow import Run


def test_new_scans_concern_no_stage_of_the_training():
    plain = Run({"name": "a", "cohort": "scans"})
    other = Run({"name": "a", "cohort": "scans", "scans": "new", "segment": {"uncertainty": True, "shards": 3}})
    assert other.provenance == plain.provenance
    assert other.predict_settings == plain.predict_settings
    assert other.segment_settings != plain.segment_settings
    assert [path.name for path in other.segment_shards] == ["0.tsv", "1.tsv", "2.tsv"]


def test_jobs_that_keep_finished_work_by_themselves_are_asked_in_every_run():
    run = Run({"name": "a", "cohort": "scans"})
    assert run.now != run.now


def test_the_program_that_makes_arrays_is_every_module_that_computes_for_it(monkeypatch):
    text = (Path(flow.__file__).parent / "preprocess.py").read_text()
    used = set(re.findall(r"^from pipeline\.(\w+) import", text, re.MULTILINE)) | {"preprocess"}
    others = {"errors", "manifest", "paths", "plan", "processes", "records"}  # do not touch an array
    assert {f"{name}.py" for name in used - others} == set(flow.PREPARING)
    before = Run({"name": "a", "cohort": "scans"}).preparing_code
    monkeypatch.setattr(flow, "PREPARING", flow.PREPARING[:-1])
    assert Run({"name": "a", "cohort": "scans"}).preparing_code != before


def test_the_cohorts_description_is_watched_where_there_is_one_by_its_content_and_not_its_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run({"name": "a", "cohort": "scans"})
    missing = run.cohort_watched(None)
    Path("scans").mkdir()
    description = Path("scans/dataset.json")
    description.write_text("{}")
    found = run.cohort_watched(None)
    os.utime(description, (0, 0))
    assert run.cohort_watched(None) == found != missing
    description.write_text("{ }")
    assert run.cohort_watched(None) not in (found, missing)
    assert Run({"name": "a", "cohort": str(description)}).cohort_watched(None) != found, "a table"


def test_a_cohort_is_looked_through_anew_when_a_scan_is_added(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("scans/images").mkdir(parents=True)
    run = Run({"name": "a", "cohort": "scans"})
    before = run.cohort_watched(None)
    Path("scans/images/a.nii.gz").touch()
    assert run.cohort_watched(None) != before
    assert Run({"name": "a", "cohort": "demo"}).cohort_watched(None) == "", "phantoms, whatever is called demo here"


def test_regions_of_the_dataset_decide_the_loss_unless_the_user_gives_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("dataset.json").write_text('{"labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 9}}')
    config = {"name": "a", "cohort": ".", "regions": {}}
    run = Run(config)
    assert run.config["regions"] == {"whole": [1, 2], "core": [2]}
    assert run.config["train"]["loss"] == "dice_bce"
    assert run.config["ignore_label"] == 9
    assert Run({**config, "regions": {"all": [1, 2]}}).config["regions"] == {"all": [1, 2]}
    assert Run({**config, "task": "regression"}).config["regions"] == {}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"whole": [1, 2], "core": [2, 3]}, "regions.core is [2, 3], regions.whole is [1, 2]: they overlap"),
        ({"core": [2], "whole": [1, 2]}, "regions.core is [2]: one value that no later region has expected"),
        ({"whole": [1, "two"]}, "regions.whole.1 is 'two'"),
        ({"whole": [1, 2], "ignore": 2}, "ignore_label is 2, yet regions.whole has it"),
    ],
)
def test_regions_that_cannot_be_are_looked_for_in_the_file_that_declares_them(
    tmp_path, monkeypatch, capsys, labels, message
):
    monkeypatch.chdir(tmp_path)
    Path("dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(SystemExit):
        Run({"name": "a", "cohort": "."})
    assert f"CohortError: dataset.json: {message}" in capsys.readouterr().err
    given = {"regions": {"all": [1]}, "ignore_label": 9}
    assert Run({"name": "a", "cohort": ".", **given}).config["regions"] == given["regions"], "what the user says wins"


def test_nnunets_names_of_channels_decide_how_they_are_normalised_unless_the_user_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("dataset.json").write_text('{"channel_names": {"0": "noNorm", "1": "rescale_to_0_1", "2": "T1"}}')
    assert Run({"name": "a", "cohort": "."}).config["normalisation"] == {"0": "none", "1": "rescale"}
    given = {"name": "a", "cohort": ".", "normalisation": {1: "zscore"}}
    assert Run(given).config["normalisation"] == {"0": "none", "1": "zscore"}


def test_what_predict_leaves_for_the_ensemble_is_what_it_can_combine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run({"name": "a", "cohort": "scans"})
    assert run.probabilities("2d", 3) == [Path("results/a/predict/2d/fold_3")]
    assert not Run({"name": "a", "cohort": "scans", "configurations": ["2d"]}).probabilities("2d", 3)
    assert not Run({"name": "a", "cohort": "scans", "task": "regression"}).probabilities("2d", 3)
    assert not run.has_cascade
    assert Run({"name": "a", "cohort": "scans", "configurations": ["3d_lowres", "3d_cascade_fullres"]}).has_cascade


def test_a_training_asks_a_cluster_for_its_minutes_and_for_memory_that_holds_step_and_cohort():
    def asked(**changes):
        run = Run({"name": "a", "cohort": "demo", **changes})
        return run.training_minutes, run.training_memory / 1024

    assert asked(train={"minutes": 60})[0] == 105
    assert asked(train={"epochs": 1000})[0] == asked(train={"iterations": 3})[0] == 24 * 60
    assert 2 * 8 < asked(memory_gib=8)[1] < 3 * 8


def test_predicting_asks_for_what_inference_measured_and_for_snakemake_beside_it(tmp_path):
    (tmp_path / "2d.json").write_text('{"mem_mb": 1000}')
    input = SimpleNamespace(inference=tmp_path / "2d.json")
    assert Run({"name": "a", "cohort": "demo"}).predict_memory(None, input) == 1000 + flow.ENGINE_MB
