"""New scans to masks: what is made, what is kept, what fails alone, and what is said about each."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline import records, segment, segment_tables
from pipeline.errors import CohortError
from pipeline.images import grid_of, open_image, read_labels_ras, read_ras
from pipeline.nn.checkpoints import load_model, save_model
from pipeline.nn.networks import build_network
from pipeline.novelty import look_at
from pipeline.paths import Results
from pipeline.postprocess import Operation, component_sizes
from pipeline.records import Cohort
from pipeline.windows import Setting
from tests.test_dicom import HU, write_series
from tests.test_preprocess import make_plan

ROOT = Path(__file__).parents[1]
SHAPE, SPACING_MM = (18, 22, 13), (0.7, 1.0, 2.5)
SETTINGS = {"train_mirror": [], "memory_gib": 8, "uncertainty": False, "asked": {}}
WIDTH = 4


def save_scan(path, seed=0, label=None, spacing_mm=SPACING_MM, spike=0.0):
    voxels = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    voxels[3, 4, 5] += spike
    if label is not None:
        voxels = np.full(SHAPE, label, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag((*spacing_mm, 1.0))), path)


def save_random_model(files, configuration, fold, seed):
    """A network that has learnt nothing stands for a trained one."""
    torch.manual_seed(seed)
    plan = make_plan(configuration=configuration)
    save_model(files.model(configuration, fold), build_network(plan, WIDTH).state_dict(), WIDTH, plan)


def save_setting(files, configuration, overlap=0.5):
    setting = Setting(window=1, overlap=overlap, mirror=False)
    records.write_json(files.inference(configuration), asdict(setting))


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A run whose ensemble took `one` of two configurations, and two new scans like its single training case."""
    monkeypatch.chdir(tmp_path)
    files = Results("tiny")
    records.write_cohort(files.cohort, Cohort("tiny", "MSD", {0: "background", 2: "liver", 5: "spleen"}, {0: "MRI"}))
    for seed, configuration in enumerate(("one", "two")):
        save_random_model(files, configuration, 0, seed)
        save_setting(files, configuration)
    records.write_json(files.choice, {"for_new_scans": ["one"]})
    for seed, name in enumerate("ab"):
        save_scan(tmp_path / f"scans/{name}.nii.gz", seed)
    voxels, grid = read_ras(Path("scans/a.nii.gz"))
    box = tuple(slice(0, size) for size in SHAPE)
    seen = look_at(voxels[None], box, grid, grid_of(open_image(Path("scans/a.nii.gz"))).orientation)
    row = {"case": "t", **asdict(seen), "volumes_ml": {"liver": 3.0, "spleen": 3.0}}
    records.write_json(files.fingerprint, {"cases": [row]})
    return files


def run(folds="0", scans="scans", shards=1, **changes):
    """As the rules do: every share of the scans, then the tables."""
    for shard in range(shards):
        settings = json.dumps({**SETTINGS, **changes})
        segment.main("tiny", scans, folds, settings, shard=shard, shards=shards, device="cpu")
    segment_tables.main("tiny", shards, settings='{"tolerance_mm": 2}')


def num_made(capsys, **changes):
    capsys.readouterr()
    run(**changes)
    return int(re.search(r"2 scans, (\d) masks in .* are new", capsys.readouterr().out)[1])


def rows_of(files):
    return {row["case"]: row for row in records.read_table(files.segment_cases)}


def test_a_mask_is_made_anew_when_anything_that_it_was_made_of_changes(trained, capsys):
    assert num_made(capsys) == 2
    assert num_made(capsys) == 0
    before = trained.segmented("a").read_bytes()
    save_scan(Path("scans/a.nii.gz"), seed=7)
    assert num_made(capsys) == 1
    assert trained.segmented("a").read_bytes() != before
    save_random_model(trained, "one", 0, seed=8)
    assert num_made(capsys) == 2
    save_setting(trained, "one", overlap=0.25)
    assert num_made(capsys) == 2
    assert num_made(capsys, memory_gib=4) == 2
    assert num_made(capsys, memory_gib=4) == 0
    records.write_json(trained.choice, {"for_new_scans": ["one", "two"]})
    assert num_made(capsys, memory_gib=4) == 2


def test_masks_of_new_scans_are_cleaned_as_the_ensemble_chose_and_made_anew_when_that_changes(trained, capsys):
    cohort = records.read_cohort(trained.cohort)
    assert num_made(capsys) == 2
    before = component_sizes(read_labels_ras(trained.segmented("a"))[0], cohort)
    assert max(map(len, before)) > 1, "a network that has learnt nothing"
    largest = asdict(Operation(keep_largest=True))
    cleaning = {"for_new_scans": {"2": largest, "5": largest}}
    records.write_json(trained.choice, {"for_new_scans": ["one"], "postprocess": cleaning})
    assert num_made(capsys) == 2
    after = component_sizes(read_labels_ras(trained.segmented("a"))[0], cohort)
    assert [sizes.tolist() for sizes in after] == [[sizes.max()] if len(sizes) else [] for sizes in before]
    assert num_made(capsys) == 0


def test_a_mask_without_a_record_or_a_record_without_its_mask_is_made_anew(trained, capsys):
    assert num_made(capsys) == 2
    trained.segment_record("a").unlink()
    trained.segmented("b").unlink()
    assert num_made(capsys) == 2
    trained.segment_record("a").write_text("{")
    assert num_made(capsys) == 1


def test_a_scan_that_check_would_refuse_is_named_and_the_others_get_their_masks(trained, capsys):
    whole = Path("scans/b.nii.gz").read_bytes()
    Path("scans/b.nii.gz").write_bytes(whole[:-500])
    with pytest.raises(
        CohortError, match=r"^segment: 1 of 2 scans have no mask: b\. The reasons stand above"
    ) as caught:
        run()
    assert "\n" not in str(caught.value)
    assert "b: no mask. scans/b.nii.gz: " in capsys.readouterr().out
    assert trained.segmented("a").exists()
    assert not trained.segmented("b").exists()
    assert {case: row["status"] for case, row in rows_of(trained).items()} == {"a": "done", "b": "failed"}
    assert rows_of(trained)["b"]["reason"].startswith("scans/b.nii.gz: ")
    assert [row["case"] for row in records.read_table(trained.segment_problems)] == ["b"]
    Path("scans/b.nii.gz").write_bytes(whole)
    assert num_made(capsys) == 1


def test_a_scan_that_fails_loses_the_mask_of_the_scan_that_had_its_name_before(trained):
    run()
    Path("scans/b.nii.gz").write_bytes(b"")
    with pytest.raises(CohortError, match="no mask: b"):
        run()
    assert not trained.segmented("b").exists()


class Poisoned(torch.nn.Module):
    """Not a number in the windows that hold an unusual voxel."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, windows):
        logits = self.network(windows)
        logits[windows.amax(dim=(1, 2, 3, 4)) > 20] = torch.nan
        return logits


def test_a_network_that_is_not_finite_in_one_window_fails_that_scan_by_name_and_no_other(trained, monkeypatch):
    def load_poisoned(path, where):
        model = load_model(path, where)
        return replace(model, network=Poisoned(model.network).eval())

    monkeypatch.setattr(segment, "load_model", load_poisoned)
    save_scan(Path("scans/b.nii.gz"), seed=1, spike=100.0)
    with pytest.raises(CohortError, match="1 of 2 scans have no mask: b"):
        run()
    assert re.match(r"b: .*not finite", rows_of(trained)["b"]["reason"])
    assert sorted(path.name for path in trained.segment.glob("*.nii.gz")) == ["a.nii.gz"]


def test_a_kill_in_the_middle_of_twenty_scans_leaves_only_the_missing_ones_to_do(trained, capsys):
    for seed in range(20):
        save_scan(Path(f"scans/{seed:02d}.nii.gz"), seed)
    for name in "ab":
        Path(f"scans/{name}.nii.gz").unlink()
    options = {"results": "tiny", "scans": "scans", "folds": "0", "settings": json.dumps(SETTINGS), "device": "cpu"}
    arguments = [part for key, value in options.items() for part in (f"--{key}", value)]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.segment", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(recorded(trained)) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in map(trained.segmented, recorded(trained))}
    assert 3 <= len(finished) < 20
    run()
    assert f"20 scans, {20 - len(finished)} masks in" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert len(rows_of(trained)) == 20


def recorded(files):
    return [path.stem for path in files.segment.glob("[!.]*.json")]


def test_shares_of_the_scans_come_together_in_the_tables(trained):
    run(shards=3)
    assert list(rows_of(trained)) == ["a", "b"]
    assert all(trained.segmented(name).exists() for name in "ab")


def test_a_scan_unlike_those_of_training_is_flagged_and_its_mask_is_made(trained, capsys):
    save_scan(Path("scans/b.nii.gz"), seed=1, spacing_mm=(0.7, 1.0, 5.0))
    run()
    flags = rows_of(trained)["b"]["flags"].split("; ")
    assert "spacing along z 5 mm, 2.5 mm in training" in flags
    assert "spacing" not in rows_of(trained)["a"]["flags"]
    assert trained.segmented("b").exists()
    out = capsys.readouterr().out
    assert "spacing along z 5 mm" in out
    assert "2 masks in results/tiny/segment, " in out


def test_volume_and_expected_dsc_of_each_label_are_on_record_and_flagged_where_unusual(trained):
    run()
    table = [row for row in records.read_table(trained.segment_labels) if row["case"] == "a"]
    assert [(row["label"], row["name"]) for row in table] == [("2", "liver"), ("5", "spleen")]
    mask = np.asarray(nib.load(trained.segmented("a")).dataobj)
    for row in table:
        voxels = (mask == int(row["label"])).sum()
        assert float(row["volume_ml"]) == pytest.approx(voxels * np.prod(SPACING_MM) / 1000, rel=1e-4)
        assert (row["expected_dsc"] == "") == (voxels == 0)
    found = [float(row["expected_dsc"]) for row in table if row["expected_dsc"]]
    assert float(rows_of(trained)["a"]["expected_dsc"]) == pytest.approx(np.mean(found), abs=1e-3)
    assert all(0 < value < 0.7 for value in found), "it has learnt nothing, and knows"
    assert "expected DSC of" in rows_of(trained)["a"]["flags"]


def test_maps_of_uncertainty_lie_on_the_scans_grid_and_go_when_they_are_not_wanted(trained, capsys):
    save_random_model(trained, "one", 1, seed=5)
    run(folds="0,1", uncertainty=True)
    for kind in ("entropy", "disagreement"):
        image, scan = nib.load(trained.uncertainty("a", kind)), nib.load("scans/a.nii.gz")
        values = np.asarray(image.dataobj)
        assert image.shape == scan.shape
        assert image.affine.tobytes() == scan.affine.tobytes()
        assert values.dtype == np.float32
        assert 0 <= values.min() < values.max() <= 1
    trained.uncertainty("a", "entropy").unlink()
    assert num_made(capsys, folds="0,1", uncertainty=True) == 1
    run(folds="0", uncertainty=True)
    assert sorted(path.name for path in trained.segment.glob("uncertainty/a*")) == ["a_entropy.nii.gz"]
    run(folds="0")
    assert sorted(trained.segment.glob("uncertainty/*")) == []


def test_masks_with_labels_are_scored_and_a_label_that_is_refused_is_not(trained):
    save_scan(Path("scans/labels/a.nii.gz"), label=2)
    save_scan(Path("scans/labels/b.nii.gz"), label=3)
    run()
    assert {row["case"] for row in records.read_table(trained.segment / "metrics.tsv")} == {"a"}
    assert rows_of(trained)["b"]["flags"].startswith("not scored, its label is refused")
    assert [row["rule"] for row in records.read_table(trained.segment_problems)] == ["label-undeclared"]
    for name in "ab":
        Path(f"scans/labels/{name}.nii.gz").unlink()
    run()
    assert not (trained.segment / "metrics.tsv").exists()


def test_scans_and_labels_of_other_formats_are_segmented_and_scored_as_their_twins_in_nifti(trained):
    sitk = pytest.importorskip("SimpleITK")
    save_scan(Path("scans/labels/a.nii.gz"), label=2)
    for source, target in {"scans/a.nii.gz": "others/a.nrrd", "scans/labels/a.nii.gz": "others/labels/a.mha"}.items():
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(sitk.ReadImage(source), target)
    run()
    expected = np.asarray(nib.load(trained.segmented("a")).dataobj)
    scores = [row for row in records.read_table(trained.segment / "metrics.tsv") if row["case"] == "a"]
    run(scans="others")
    assert (np.asarray(nib.load(trained.segmented("a")).dataobj) == expected).all()
    assert records.read_table(trained.segment / "metrics.tsv") == scores
    Path("others/labels/a.mha").write_text("not a label map")
    run(scans="others")
    assert rows_of(trained)["a"]["flags"].startswith("not scored, its label is refused")
    assert [Path(row["file"]) for row in records.read_table(trained.segment_problems)] == [Path("others/labels/a.mha")]


def test_what_the_user_chose_for_the_cohort_counts_for_new_scans(trained):
    scan = nib.load("scans/a.nii.gz")
    values = np.asarray(scan.dataobj).astype(np.float32)
    values[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(values, scan.affine), "scans/a.nii.gz")
    with pytest.raises(CohortError, match="scans have no mask: a"):
        run()
    run(asked={"nonfinite": "fill"})
    assert rows_of(trained)["a"]["status"] == "done"


def test_a_dicom_series_is_segmented_like_any_scan(trained):
    write_series(Path("dicom/anna"), voxels=np.tile(HU, (2, 2, 2)))
    run(scans="dicom")
    assert list(rows_of(trained)) == ["anna"]
    mask, converted = nib.load(trained.segmented("anna")), nib.load(trained.converted("anna_0000"))
    assert mask.shape == converted.shape == (18, 14, 10)
    assert mask.affine.tobytes() == converted.affine.tobytes()


def test_a_series_whose_gantry_was_tilted_is_refused_alone(trained):
    write_series(Path("dicom/anna"))
    tilted = np.arange(5)[:, None] * np.array([0.5, 0, 2.5])
    write_series(Path("dicom/ben"), positions_mm=tilted, down=np.array([0.0, 1.0, 0.0]))
    with pytest.raises(CohortError, match="1 of 2 scans have no mask: ben"):
        run(scans="dicom")
    assert "gantry tilt" in rows_of(trained)["ben"]["reason"]


def test_tables_of_a_scan_whose_record_is_gone_say_so(trained):
    run()
    trained.segment_record("a").unlink()
    with pytest.raises(CohortError, match=r"a\.json: missing or damaged"):
        segment_tables.main("tiny", 1, settings='{"tolerance_mm": 2}')
