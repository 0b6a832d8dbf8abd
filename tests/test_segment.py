import json
import re
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline import records
from pipeline.errors import CohortError
from pipeline.nn.checkpoints import save_model
from pipeline.nn.networks import build_network
from pipeline.paths import Results
from pipeline.records import Cohort
from pipeline.segment import find_scans, main
from pipeline.windows import Setting
from tests.test_preprocess import make_plan

SHAPE, SPACING_MM = (18, 22, 13), (0.7, 1.0, 2.5)
SETTINGS = {"train_mirror": [], "memory_gib": 8}
WIDTH = 4


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_channels_of_a_case_are_found_in_order_and_its_label_beside_them(tmp_path):
    touch(tmp_path, "imagesTs/a_0001.nii.gz", "imagesTs/a_0000.nii.gz", "labelsTs/a.nii.gz", "imagesTs/readme.txt")
    (case,) = find_scans(tmp_path, num_channels=2)
    assert case.case == "a"
    assert [path.name for path in case.channels] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert case.label == tmp_path / "labelsTs" / "a.nii.gz"


def test_a_plain_folder_and_a_single_file_work(tmp_path):
    touch(tmp_path, "one.nii", "two.nii.gz")
    assert [case.case for case in find_scans(tmp_path, 1)] == ["one", "two"]
    assert [case.label for case in find_scans(tmp_path / "one.nii", 1)] == [None]


def test_with_one_channel_the_number_of_a_patient_belongs_to_the_case(tmp_path):
    touch(tmp_path, "p_0001.nii", "p_0002.nii", "q_0000.nii.gz", "labels/p_0002.nii", "labels/q.nii.gz")
    cases = find_scans(tmp_path, num_channels=1)
    assert [case.case for case in cases] == ["p_0001", "p_0002", "q"]
    assert [case.label and case.label.name for case in cases] == [None, "p_0002.nii", "q.nii.gz"]
    assert find_scans(tmp_path / "p_0001.nii", 1)[0].case == "p_0001"


def save_scan(path, seed=0, label=None):
    voxels = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    if label is not None:
        voxels = np.full(SHAPE, label, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag((*SPACING_MM, 1.0))), path)


def save_random_model(files, configuration, fold, seed):
    """A network that has learnt nothing stands for a trained one."""
    torch.manual_seed(seed)
    plan = make_plan(configuration=configuration)
    save_model(files.model(configuration, fold), build_network(plan, WIDTH).state_dict(), WIDTH, plan)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A run whose ensemble took `one` of two configurations, and two new scans."""
    monkeypatch.chdir(tmp_path)
    files = Results("tiny")
    records.write_cohort(files.cohort, Cohort("tiny", "MSD", {0: "background", 2: "liver", 5: "spleen"}, {0: "MRI"}))
    for seed, configuration in enumerate(("one", "two")):
        save_random_model(files, configuration, 0, seed)
    for configuration in ("one", "two"):
        records.write_json(files.inference(configuration), asdict(Setting(1, 0.5, mirror=False)))
    records.write_json(files.choice, {"for_new_scans": ["one"]})
    for seed, name in enumerate("ab"):
        save_scan(tmp_path / f"scans/{name}.nii.gz", seed)
    return files


def num_made(capsys, **changes):
    main("tiny", "scans", "0", json.dumps({**SETTINGS, **changes}), tolerance_mm=2, device="cpu")
    return int(re.search(r"2 masks in .*, (\d) of them new", capsys.readouterr().out)[1])


def test_a_mask_is_made_anew_when_anything_that_it_was_made_of_changes(trained, capsys):
    assert num_made(capsys) == 2
    assert num_made(capsys) == 0
    before = trained.segmented("a").read_bytes()
    save_scan(Path("scans/a.nii.gz"), seed=7)
    assert num_made(capsys) == 1
    assert trained.segmented("a").read_bytes() != before
    save_random_model(trained, "one", 0, seed=8)
    assert num_made(capsys) == 2
    assert num_made(capsys, overlap=0.25) == 2
    assert num_made(capsys, overlap=0.25) == 0
    records.write_json(trained.choice, {"for_new_scans": ["one", "two"]})
    assert num_made(capsys, overlap=0.25) == 2


def test_a_mask_without_a_record_or_a_record_without_its_mask_is_made_anew(trained, capsys):
    assert num_made(capsys) == 2
    trained.segment_record("a").unlink()
    trained.segmented("b").unlink()
    assert num_made(capsys) == 2


def test_a_scan_that_check_would_refuse_is_one_line_and_no_mask_is_made(trained, tmp_path):
    whole = (tmp_path / "scans/b.nii.gz").read_bytes()
    (tmp_path / "scans/b.nii.gz").write_bytes(whole[:-500])
    with pytest.raises(CohortError, match=r"^scans/b.nii.gz: .*No mask was made; 1 refused file") as caught:
        main("tiny", "scans", "0", json.dumps(SETTINGS), tolerance_mm=2, device="cpu")
    assert "\n" not in str(caught.value)
    assert not trained.segmented("a").exists()
    assert [row["case"] for row in records.read_table(trained.segment_problems)] == ["b"]


def test_a_label_of_a_new_scan_is_checked_too(trained, tmp_path):
    save_scan(tmp_path / "scans/labels/a.nii.gz", label=3)
    with pytest.raises(CohortError, match=r"^scans/labels/a.nii.gz: .*3"):
        main("tiny", "scans", "0", json.dumps(SETTINGS), tolerance_mm=2, device="cpu")


@pytest.mark.parametrize(
    ("names", "scans", "message"),
    [
        ([], "", "no NIfTI file"),
        ([], "missing", "no NIfTI file"),
        (["a.nii"], "", "a: a.nii found in"),
        (["a_0000.nii", "a_0002.nii"], "", "a_0000.nii.gz, a_0001.nii.gz expected: one file per channel"),
        (["a_0000.nii"], "a_0000.nii", "a: a_0000.nii found in"),
        (["a.txt"], "a.txt", "NIfTI (.nii, .nii.gz) expected"),
        (["a.nii", "a.nii.gz"], "", "same name"),
    ],
)
def test_what_cannot_be_segmented_is_refused_by_name(tmp_path, names, scans, message):
    touch(tmp_path, *names)
    with pytest.raises(CohortError, match=re.escape(message)):
        find_scans(tmp_path / scans, num_channels=1 if "same" in message else 2)
