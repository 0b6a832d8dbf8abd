"""From a scan in any orientation to the mask on its own grid, through windows, slabs and rows, and a job that goes on."""

import json
from dataclasses import asdict
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from pipeline import disk, predict, records
from pipeline.errors import PredictionError
from pipeline.nn.checkpoints import Model, save_model
from pipeline.paths import Results
from pipeline.predict import predict_case, write_prediction
from pipeline.preprocess import prepare, preprocess_case, read_channels
from pipeline.records import Case
from pipeline.restore import restore_labels, restore_values
from pipeline.windows import Setting, Window
from tests.test_inference import small_model
from tests.test_preprocess import make_plan
from tests.test_train import CPU

SHAPE, SPACING = (18, 37, 13), (0.7, 1.0, 2.5)
WINDOW = Window((16, 24, 16), 0.5)
ORIENTATIONS = ["".join(side) for axes in permutations(("RL", "AP", "SI")) for side in product(*axes)]


class Threshold(torch.nn.Module):
    """Label 2 where the scan is above 0, label 5 where it is above 1: what it finds, everyone can tell."""

    def forward(self, image):
        return 50 * torch.cat([0 * image, image, 2 * image - 1], dim=1)


def blocks():
    """(I, J, K) in RAS order, of values -1, 0.6 and 2."""
    volume = np.full(SHAPE, -1, np.float32)
    volume[2:12, 3:30, 0:9] = 0.6
    volume[5:9, 8:33, 4:11] = 2
    return volume


def save_in(orientation, path):
    """The blocks as a file whose axes run as the letters say, turned a little in space."""
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(orientation))
    angle = 0.2
    affine = np.diag((*SPACING, 1.0))
    affine[:2, :2] = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ affine[:2, :2]
    voxels = nib.orientations.apply_orientation(blocks(), turn)
    nib.save(nib.Nifti1Image(voxels, affine @ inv_ornt_aff(turn, SHAPE)), path)
    return np.where(voxels > 1, 5, np.where(voxels > 0, 2, 0))


def of_case(path):
    return Case("a", "a", 0, None, (path,))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_scan_in_any_orientation_gets_its_mask_on_its_own_voxels(tmp_path, orientation):
    expected = save_in(orientation, tmp_path / "scan.nii.gz")
    plan = make_plan(normalisation=("none",))
    prepared = prepare(*read_channels(of_case(tmp_path / "scan.nii.gz")), plan)
    prediction = predict_case([Model(Threshold(), plan, 4)], prepared.image, prepared.placement, CPU, WINDOW, case="a")
    write_prediction(tmp_path / "mask.nii.gz", [prediction], plan, tmp_path / "scan.nii.gz")
    scan, mask = nib.load(tmp_path / "scan.nii.gz"), nib.load(tmp_path / "mask.nii.gz")
    assert np.array_equal(np.asarray(mask.dataobj), expected)
    assert mask.affine.tobytes() == scan.affine.tobytes()


def test_values_of_a_regression_come_back_in_their_unit(tmp_path):
    save_in("LPS", tmp_path / "scan.nii.gz")
    plan = make_plan(normalisation=("none",), task="regression", labels=(), target_scale=20.0)
    prepared = prepare(*read_channels(of_case(tmp_path / "scan.nii.gz")), plan)
    model = Model(torch.nn.Identity(), plan, 4)
    prediction = predict_case([model], prepared.image, prepared.placement, CPU, WINDOW, case="a")
    assert np.abs(restore_values([prediction]) - 20 * blocks()).max() < 1e-3


def test_weights_that_give_no_numbers_fail_with_the_name_of_the_case():
    class Broken(Threshold):
        def forward(self, image):
            return super().forward(image) * float("nan")

    plan = make_plan(normalisation=("none",))
    prepared = prepare(blocks()[None], SPACING, plan)
    prediction = predict_case(
        [Model(Broken(), plan, 4)], prepared.image, prepared.placement, CPU, WINDOW, case="case_17"
    )
    with pytest.raises(PredictionError, match=r"^case_17: the network's output is not finite"):
        restore_labels([prediction], plan)


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Three cases that are ready to be predicted, the cases that were since the last look, and a job that dies at one."""
    monkeypatch.chdir(tmp_path)
    files, model, seen = Results("tiny"), small_model(), []
    save_model(files.model("3d_fullres", 0), model.network.state_dict(), 4, model.plan)
    cases = [Case(name, name, 0, None, (tmp_path / f"{name}.nii.gz",)) for name in "abc"]
    made = {}
    for case in cases:
        save_in("LPS", case.channels[0])
        made |= preprocess_case(case, files.arrays("3d_fullres", case.case), plan=model.plan)[0]
    records.write_cases(files.checked_cases, cases)
    records.write_file_list(files.preprocessed("3d_fullres", 0), made)
    records.write_json(files.inference("3d_fullres"), asdict(Setting(1, 0.5, False)))
    disk.write_text(files.manifest, "digests of the scans")

    def start(dies_at=None):
        def predict_one(*arguments, case):
            if case == dies_at:
                raise PredictionError(f"{case}: as if killed")
            seen.append(case)
            return predict_case(*arguments, case=case)

        seen.clear()
        monkeypatch.setattr(predict, "predict_case", predict_one)
        settings = json.dumps({"train_mirror": [], "memory_gib": 8})
        predict.main("tiny", "3d_fullres", 0, settings, keep_probabilities=True, device="cpu")
        return seen

    return files, start


def all_made(files):
    """What predict made, by path: masks, probabilities and lists."""
    folders = (files.mask("3d_fullres", "a").parent, files.predicted("3d_fullres", 0).parent)
    return records.digests(path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file())


def test_a_job_that_was_killed_goes_on_after_its_last_case_and_leaves_what_an_unbroken_one_does(job):
    files, start = job
    assert start() == ["a", "b", "c"]
    unbroken = all_made(files)
    assert len(unbroken) == 3 + 3 + 2 and not files.unfinished("3d_fullres", 0).exists()
    with pytest.raises(PredictionError, match="as if killed"):
        start(dies_at="c")
    assert start() == ["c"]
    assert all_made(files) == unbroken


@pytest.mark.parametrize("what", ["mask", "scans"])
def test_what_changed_since_a_job_was_killed_is_predicted_again(job, what):
    files, start = job
    with pytest.raises(PredictionError, match="as if killed"):
        start(dies_at="c")
    changed = files.mask("3d_fullres", "a") if what == "mask" else files.manifest
    changed.write_bytes(b"other")
    assert start() == (["a", "c"] if what == "mask" else ["a", "b", "c"])
