"""The whole flow as its user meets it: through `snakemake`, on a cohort so small that a run takes seconds."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.phantoms import write_cohort
from pipeline.records import read_table

ROOT = Path(__file__).parents[1]
TINY = {"features": 4, "patch_size": [16, 16, 16], "batch_size": 2}
SETTINGS = {
    "name": "tiny",
    "cohort": "scans",
    "folds": 2,
    "device": "cpu",
    "threads": 1,
    "configurations": {
        "2d": {"dims": 2, **TINY, "patch_size": [16, 16]},
        "3d_fullres": {"dims": 3, **TINY},
        "3d_lowres": {},  # left out: the scans are small
    },
    "train": {"iterations": 3},
}


def snakemake(folder, *arguments, **changes):
    """Run in `folder` with config.json; the process as it ended."""
    (folder / "config.json").write_text(json.dumps({**SETTINGS, **changes}))
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "2"]
    return subprocess.run(
        [*command, *arguments, "--configfile", "config.json"], cwd=folder, capture_output=True, text=True, timeout=600
    )


def jobs(process):
    """The names of the rules that a dry run would run."""
    lines = process.stdout.partition("Job stats:")[2].partition("\n\n")[0].splitlines()[3:]
    return {line.split()[0] for line in lines} - {"all", "total"}


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder with a cohort of six phantoms and a finished run of two configurations and two folds."""
    folder = tmp_path_factory.mktemp("run")
    write_cohort(folder / "scans", num_cases=6, size=0.5)
    done = snakemake(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "said.txt").write_text(done.stdout)
    return folder


@pytest.fixture
def small_cohort(tmp_path):
    write_cohort(tmp_path / "scans", num_cases=4, size=0.5)
    return tmp_path


def test_a_run_ends_with_the_headline_and_the_paths(finished):
    said = (finished / "said.txt").read_text()
    assert "DSC (95 % interval)" in said and "ensemble" in said
    assert f"report: {(finished / 'results/tiny/report.html').as_uri()}" in said
    again = snakemake(finished)
    assert again.returncode == 0 and "report: file:" not in again.stdout, "nothing was done"


def test_a_scan_that_is_added_to_plain_folders_is_found_by_the_next_run(tmp_path):
    changes = {"labels": {"1": "liver"}, "channels": {"0": "CT"}}
    for name in ("a", "b", "c"):
        for folder in ("images", "labels"):
            (tmp_path / "scans" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "scans" / folder / f"{name}.nii.gz").touch()
        if name == "b":
            done = snakemake(tmp_path, "discover", **changes)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "folders layout in scans, for images/ and labels/ are there" in done.stdout
            assert jobs(snakemake(tmp_path, "--dry-run", "discover", **changes)) == set()
    assert jobs(snakemake(tmp_path, "--dry-run", "discover", **changes)) == {"discover"}


def test_a_run_ends_with_all_that_the_contract_promises(finished):
    results = finished / "results" / "tiny"
    assert (results / "report.html").stat().st_size > 10_000
    metrics = read_table(results / "metrics.tsv")
    assert len(metrics) == 3 * 6 * 3, "configurations with the ensemble, cases, labels"
    assert {row["configuration"] for row in metrics} == {"2d", "3d_fullres", "ensemble"}
    assert {"configuration", "fold", "case", "label", "status", "dsc", "nsd", "hd95_mm"} <= metrics[0].keys()
    assert {row["configuration"] for row in read_table(results / "summary.tsv")} == {"2d", "3d_fullres", "ensemble"}
    for stage in ["discover", "check", "fingerprint", "plan", "preprocess", "train", "predict", "ensemble"]:
        assert (results / stage).is_dir(), stage
        assert any((finished / "logs" / "tiny" / stage).rglob("*.log")), stage


def test_every_job_leaves_its_command_and_its_cost_beside_each_other(finished):
    logs = sorted((finished / "logs" / "tiny").rglob("*.log"))
    assert {path.relative_to(finished / "logs" / "tiny").parts[0] for path in logs} >= {"check", "train", "report"}
    for path in logs:
        first = path.read_text().splitlines()[0]
        assert first.startswith(f"cd {finished} && env PYTHONPATH={ROOT} OMP_NUM_THREADS="), first
        assert path.with_suffix(".cost.tsv").exists(), path


def test_snakemakes_own_report_has_our_page_and_what_every_job_took(finished, tmp_path):
    results = finished / "results" / "tiny"
    assert "<h3>What it took</h3>" in (results / "report.html").read_text()
    done = snakemake(finished, "--report", str(tmp_path / "snakemake.html"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"Adding {name} " in done.stderr for name in ("report.html", "metrics.tsv", "summary.tsv"))
    assert "one page that works offline" in (tmp_path / "snakemake.html").read_text()


def test_a_configuration_that_the_cohort_does_not_need_is_left_out_and_the_report_and_the_log_say_why(finished):
    reason = "a patch at full resolution covers 100% of the median scan, a quarter or more"
    results, logs = finished / "results" / "tiny", finished / "logs" / "tiny"
    assert f"3d_lowres was left out: {reason}" in (results / "report.html").read_text()
    assert (
        f"3d_lowres: left out, for {reason}. Set the `spacing_mm` of 3d_lowres to train it all the same."
        in (logs / "plan" / "3d_lowres.log").read_text()
    )
    for stage in ("preprocess", "train", "predict", "masks"):
        assert {path.name for path in (results / stage).iterdir()} - {"ensemble"} == {"2d", "3d_fullres"}


def test_a_configuration_is_trained_once_its_plan_leaves_it_out_no_more(finished):
    path = finished / "results/tiny/plan/3d_lowres.json"
    as_planned = path.read_bytes()
    path.write_text(json.dumps({**json.loads(as_planned), "left_out": None}))
    shown = snakemake(finished, "--dry-run")
    path.write_bytes(as_planned)
    assert "results/tiny/predict/3d_lowres/fold_1.json" in shown.stdout
    assert {"preprocess", "train", "inference", "predict", "ensemble", "evaluate", "report"} == jobs(shown)


def test_a_dry_run_shows_what_runs_whatever_the_plan_leaves_out(small_cohort):
    shown = snakemake(small_cohort, "--dry-run")
    assert "train              4" in shown.stdout


def test_a_cascade_is_prepared_from_what_its_low_resolution_predicts_for_the_same_fold(small_cohort):
    low = {"3d_lowres": {**TINY, "spacing_mm": [8, 8, 8]}}
    shown = snakemake(small_cohort, "--dry-run", configurations={"3d_cascade_fullres": TINY, **low}).stdout
    assert "train              4" in shown
    plan, masks = "results/tiny/plan/{}.json", "results/tiny/predict/3d_lowres/fold_{}.json"
    assert f"input: results/tiny/fingerprint/fingerprint.json, {plan.format('3d_lowres')}\n" in shown
    for fold in range(2):
        assert f"input: {plan.format('3d_cascade_fullres')}, {masks.format(fold)}\n" in shown


def test_an_edit_of_the_plan_reruns_what_reads_it_and_is_never_overwritten(small_cohort):
    """Also when a changed setting makes the plan stage run again, or when the edit is of no use."""
    changes = {"configurations": {"2d": SETTINGS["configurations"]["2d"]}}
    assert snakemake(small_cohort, "--until", "preprocess", **changes).returncode == 0
    path = small_cohort / "results/tiny/plan/2d.json"
    path.write_text(edited := path.read_text().replace('"batch_size": 2', '"batch_size": 3'))
    rerun = jobs(snakemake(small_cohort, "--dry-run", **changes))
    assert {"preprocess", "train"} <= rerun
    assert "plan" not in rerun

    done = snakemake(small_cohort, "--until", "plan", memory_gib=7, **changes)
    assert "Finished jobid" in done.stdout + done.stderr, "the plan stage ran"
    assert path.read_text() == edited
    log = (small_cohort / "logs/tiny/plan/2d.log").read_text()
    assert "2d.json was edited by hand and is kept. Delete it to plan anew." in log

    path.write_text(useless := edited.replace('"batch_size": 3', '"batch_size": "many"'))
    assert_one_line(snakemake(small_cohort, "--until", "plan", memory_gib=6, **changes), "batch_size is 'many', int")
    assert path.read_text() == useless


def test_every_mask_lies_on_the_grid_of_its_scan_with_integer_labels(finished):
    masks = sorted((finished / "results" / "tiny" / "masks").rglob("*.nii.gz"))
    assert len(masks) == 3 * 6
    for path in masks:
        mask, scan = nib.load(path), nib.load(finished / "scans" / "imagesTr" / path.name)
        assert mask.shape == scan.shape
        assert mask.affine.tobytes() == scan.affine.tobytes()
        assert mask.get_data_dtype() == np.uint8
        assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1, 2, 3}


def test_probabilities_are_gone_once_the_ensemble_has_read_them(finished):
    folder = finished / "results" / "tiny" / "predict"
    assert {path.name for path in folder.rglob("*")} == {"2d", "3d_fullres", "fold_0.json", "fold_1.json"}


def test_a_second_run_has_nothing_to_do(finished):
    assert "Nothing to be done" in (done := snakemake(finished)).stdout + done.stderr


@pytest.mark.parametrize(
    ("change", "rerun"),
    [
        ({"report": {"title": "Another"}}, {"report"}),
        ({"evaluate": {"tolerance_mm": 1}}, {"evaluate", "report"}),
        ({"train": {"iterations": 4}}, {"train", "inference", "predict", "ensemble", "evaluate", "report"}),
        ({"predict": {"overlap": 0.25}}, {"inference", "predict", "ensemble", "evaluate", "report"}),
        ({"ensemble": {"postprocess": False}}, {"predict", "ensemble", "evaluate", "report"}),
    ],
)
def test_a_changed_setting_reruns_its_stage_and_what_follows(finished, change, rerun):
    assert jobs(snakemake(finished, "--dry-run", **change)) == rerun


def test_segment_masks_new_scans_scores_them_and_keeps_what_is_still_right(finished):
    write_cohort(finished / "new", num_cases=2, seed=9, size=0.5)
    (finished / "new" / "dataset.json").unlink()
    done = snakemake(finished, "segment", "--config", "scans=new")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = finished / "results" / "tiny" / "segment"
    masks = sorted(folder.glob("*.nii.gz"))
    assert len(masks) == 2
    assert len(read_table(folder / "metrics.tsv")) == 2 * 3
    masks[0].unlink()
    before = masks[1].stat().st_mtime_ns
    again = snakemake(finished, "segment", "--config", "scans=new")
    assert again.returncode == 0
    assert masks[0].exists()
    assert masks[1].stat().st_mtime_ns == before
    assert "train" not in jobs(again)


def test_segment_in_shares_names_the_scan_that_fails_masks_the_others_and_goes_on_once_it_is_mended(finished):
    changes = {"segment": {"shards": 2, "uncertainty": True}}
    write_cohort(finished / "night", num_cases=3, seed=4, size=0.5)
    (finished / "night" / "dataset.json").unlink()
    damaged = sorted((finished / "night" / "imagesTr").iterdir())[1]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-2000])
    failed = snakemake(finished, "segment", "--config", "scans=night", **changes)
    assert_one_line(failed, "CohortError: segment: 1 of 3 scans have no mask: phantom_001.")
    folder = finished / "results" / "tiny" / "segment"
    assert [row["status"] for row in read_table(folder / "cases.tsv")] == ["done", "failed", "done"]
    kept = {name: (folder / f"{name}.nii.gz").stat().st_mtime_ns for name in ("phantom_000", "phantom_002")}
    damaged.write_bytes(whole)
    again = snakemake(finished, "segment", "--config", "scans=night", **changes)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (folder / "phantom_001.nii.gz").exists()
    assert {name: (folder / f"{name}.nii.gz").stat().st_mtime_ns for name in kept} == kept
    assert len(list((folder / "uncertainty").glob("*_disagreement.nii.gz"))) == 3
    assert len(read_table(folder / "metrics.tsv")) == 3 * 3


def test_regions_and_an_ignore_label_go_through_the_whole_flow(small_cohort):
    """Two regions that share the kidneys; the upper third of every scan is not labelled, which is value 9."""
    for path in (small_cohort / "scans" / "labelsTr").iterdir():
        image = nib.load(path)
        labels = np.asarray(image.dataobj).copy()
        labels[: len(labels) // 3] = 9
        nib.save(nib.Nifti1Image(labels, image.affine, image.header), path)
    changes = {"regions": {"organs": [1, 2, 3], "below": [2, 3]}, "ignore_label": 9, "run_folds": [0]}
    done = snakemake(small_cohort, **changes)
    assert done.returncode == 0, done.stdout + done.stderr
    results = small_cohort / "results" / "tiny"
    metrics = read_table(results / "metrics.tsv")
    assert [row["label"] for row in metrics[:2]] == ["organs", "below"]
    assert len(metrics) == 3 * 2 * 2, "configurations with the ensemble, cases of the fold, regions"
    assert {row["label"] for row in read_table(results / "summary.tsv")} == {"organs", "below", "mean"}
    masks = [np.asarray(nib.load(path).dataobj) for path in (results / "masks").rglob("*.nii.gz")]
    assert len(masks) == 3 * 2
    assert set(np.unique(np.concatenate([mask.ravel() for mask in masks]))) <= {0, 1, 2}
    again = snakemake(small_cohort, "segment", "--config", "scans=scans", **changes)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {row["label"] for row in read_table(results / "segment" / "metrics.tsv")} == {"organs", "below"}


def test_a_regression_goes_through_the_whole_flow(tmp_path):
    write_cohort(tmp_path / "scans", num_cases=4, size=0.5, has_values=True)
    changes = {"task": "regression", "run_folds": [0]}
    done = snakemake(tmp_path, **changes)
    assert done.returncode == 0, done.stdout + done.stderr
    results = tmp_path / "results" / "tiny"
    metrics = read_table(results / "metrics.tsv")
    assert [(row["configuration"], row["label"]) for row in metrics] == [
        (name, "target") for name in ("2d", "3d_fullres", "ensemble") for _ in range(2)
    ]
    assert all(0 < float(row["mae"]) <= float(row["rmse"]) for row in metrics)
    assert [row["configuration"] for row in read_table(results / "summary.tsv")] == ["2d", "3d_fullres", "ensemble"]
    case = metrics[0]["case"]
    both = [nib.load(results / "masks" / name / f"{case}.nii.gz") for name in ("2d", "3d_fullres", "ensemble")]
    assert {one.get_data_dtype() for one in both} == {np.dtype(np.float32)}
    first, second, ensemble = (np.asarray(one.dataobj) for one in both)
    assert np.allclose(ensemble, (first + second) / 2, atol=1e-4)
    page = (results / "report.html").read_text()
    assert "mean absolute error" in page and f'data-volumes="{case}"' in page
    for stage in ("plan", "train", "inference", "predict"):
        assert re.search(rf'<th scope="row">{stage}</th>.*<td class="free">CPU(, \d+ threads)?</td>', page), stage
    again = snakemake(tmp_path, "segment", "--config", "scans=scans", **changes)
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(read_table(results / "segment" / "metrics.tsv")) == 4


def test_export_writes_a_bundle_of_every_configuration_for_new_scans(finished):
    done = snakemake(finished, "export")
    assert done.returncode == 0, done.stdout + done.stderr
    chosen = json.loads((finished / "results/tiny/ensemble/choice.json").read_text())["for_new_scans"]
    for configuration in chosen:
        folder = finished / "results/tiny/export" / configuration
        assert json.loads((folder / "configs/metadata.json").read_text())["eval_metrics"]
        assert {path.name for path in (folder / "models").iterdir()} == {"model.pt2", "fold_0.onnx", "fold_1.onnx"}
    assert f"{len(chosen)} bundle(s) in" in (finished / "logs/tiny/export/export.log").read_text()


@pytest.mark.parametrize("target", ["segment", "export"])
def test_a_target_that_needs_trained_networks_says_what_to_do_before_training(small_cohort, target):
    done = snakemake(small_cohort, target, "--config", "scans=scans")
    assert done.returncode != 0
    assert_one_line(done, "nothing is trained yet")


def assert_one_line(done, message):
    text = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Traceback" not in text
    assert len([line for line in text.splitlines() if message in line]) == 1, text


def corrupt_one_file(folder):
    image = sorted((folder / "scans" / "imagesTr").iterdir())[0]
    image.write_bytes(image.read_bytes()[:-2000])


def move_one_label(folder):
    path = sorted((folder / "scans" / "labelsTr").iterdir())[0]
    label = nib.load(path)
    affine = label.affine.copy()
    affine[:3, 3] += 30
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj), affine), path)


def empty_the_cohort(folder):
    path = folder / "scans" / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "training": []}))


@pytest.mark.parametrize(
    ("damage", "changes", "message"),
    [
        (None, {"flods": 3}, "Did you mean 'folds'?"),
        (None, {"cohort": "nowhere"}, "CohortError: nowhere: "),
        (empty_the_cohort, {}, "CohortError: "),
        (corrupt_one_file, {}, "CohortError: check: 1 problem"),
        (move_one_label, {}, "CohortError: check: 1 problem"),
        (None, {"folds": 40}, "CohortError: "),
    ],
    ids=["misspelt_key", "missing_folder", "empty_cohort", "corrupt_file", "label_on_another_grid", "too_many_folds"],
)
def test_wrong_input_is_one_clear_line_and_a_failure(small_cohort, damage, changes, message):
    if damage:
        damage(small_cohort)
    assert_one_line(snakemake(small_cohort, "check", **changes), message)


def test_a_case_dropped_from_dataset_json_because_check_refused_it_is_gone_in_the_next_run(small_cohort):
    corrupt_one_file(small_cohort)
    assert_one_line(snakemake(small_cohort, "check"), "CohortError: check: 1 problem")
    path = small_cohort / "scans" / "dataset.json"
    content = json.loads(path.read_text())
    content["training"] = sorted(content["training"], key=lambda entry: entry["image"])[1:]
    path.write_text(json.dumps(content))
    done = snakemake(small_cohort, "check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "check: 3 cases, 6 files" in (small_cohort / "logs/tiny/check/check.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_training_goes_on_from_its_checkpoint_with_no_other_flag(small_cohort, number):
    """kill -9 or Ctrl-C of the whole process tree, `--unlock`, the same command: the log says at which step it went on."""
    changes = {
        "configurations": {"3d_fullres": SETTINGS["configurations"]["3d_fullres"]},
        "run_folds": [0],
        "train": {"minutes": 0.2},
    }
    (small_cohort / "config.json").write_text(json.dumps({**SETTINGS, **changes}))
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "2"]
    process = subprocess.Popen(
        [*command, "--configfile", "config.json"],
        cwd=small_cohort,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    checkpoint = small_cohort / "results/tiny/train/3d_fullres/fold_0/checkpoint.pt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, number)
    process.wait()
    assert checkpoint.exists()
    written = small_cohort / "logs/tiny/train/3d_fullres/fold_0.log"
    if number == signal.SIGINT:
        assert "stopped: saved at step" in written.read_text()

    assert snakemake(small_cohort, "--unlock", **changes).returncode == 0
    done = snakemake(small_cohort, **changes)
    assert done.returncode == 0, done.stdout + done.stderr
    log = written.read_text()
    assert "resumed: " in log
    assert "at step 0 " not in log
    assert (small_cohort / "results/tiny/report.html").exists()


def test_config_values_on_the_command_line_and_another_folder_work(tmp_path):
    """`--config` adds to the config.yaml of the working folder, which `--directory` chooses."""
    (tmp_path / "config.yaml").write_text("name: demo\ncohort: demo\n")
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--dry-run", "--directory", tmp_path]
    done = subprocess.run(
        [*command, "--config", "folds=2", "name=other"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "results/other/report.html" in done.stdout
    assert "train              4" in done.stdout
