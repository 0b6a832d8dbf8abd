"""Two folds on one GPU and on two, and what is made again when a label map is corrected; one cohort, one small run."""

import json
import os
import re

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline.nn.checkpoints import read_model
from pipeline.paths import Results
from pipeline.phantoms import write_cohort
from pipeline.records import read_cases
from tests.test_workflow import SETTINGS, snakemake

FILES = Results("tiny")
CHANGES = {
    "configurations": {"3d_fullres": SETTINGS["configurations"]["3d_fullres"]},
    "device": "auto",
    "threads": 1,
}
NAME = "3d_fullres"
TWO_GPUS = "#!/bin/sh\necho 'GPU 0: one (UUID: GPU-a)'\necho 'GPU 1: another (UUID: GPU-b)'\n"


@pytest.fixture(scope="module")
def corrected(tmp_path_factory):
    """A folder, what its models and arrays were like before a label map of fold 1 was corrected, and when folds were trained."""
    folder = tmp_path_factory.mktemp("corrected")
    write_cohort(folder / "scans", num_cases=6, size=0.5, modality="MRI")
    (folder / "bin").mkdir()
    (folder / "bin" / "nvidia-smi").write_text(TWO_GPUS)
    (folder / "bin" / "nvidia-smi").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
        patch.setenv("TMPDIR", str(folder))
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        arguments = (*(str(FILES.model(NAME, fold)) for fold in range(2)), "--cores", "4")
        done = snakemake(folder, *arguments, "--resources", "gpu=1", **CHANGES)
        assert done.returncode == 0, done.stdout + done.stderr
        first = {"models": models(folder), "arrays": arrays(folder), "times": times(folder)}
        label = next(case.label for case in read_cases(folder / FILES.checked_cases) if case.fold == 1)
        correct(folder / label)
        done = snakemake(folder, *arguments, "--forcerun", "check", **CHANGES)
        assert done.returncode == 0, done.stdout + done.stderr
        second = {"models": models(folder), "arrays": arrays(folder), "times": times(folder)}
    return folder, first, second


def correct(label):
    """One voxel of the background becomes liver."""
    image = nib.load(label)
    labels = np.asarray(image.dataobj).copy()
    labels[tuple(np.argwhere(labels == 0)[0])] = 1
    nib.save(nib.Nifti1Image(labels, image.affine, image.header), label)


def models(folder):
    """The weights of each fold; the plan in the file says how fast the machine was this time."""
    return [read_model(folder / FILES.model(NAME, fold))["weights"] for fold in range(2)]


def arrays(folder):
    """When the arrays of each case were made."""
    found = (folder / FILES.arrays(NAME, "any")).parent.glob("*/image.npy")
    return {path.parent.name: path.stat().st_mtime_ns for path in found}


def times(folder):
    """Begin and end of the training of each fold, as Snakemake noted them."""
    noted = [json.loads(path.read_text()) for path in (folder / ".snakemake" / "metadata").iterdir()]
    return sorted((one["starttime"], one["endtime"]) for one in noted if one["rule"] == "train")


def log(folder, fold):
    return (folder / FILES.log("train", f"{NAME}/fold_{fold}")).read_text()


def test_two_folds_never_overlap_on_one_gpu_and_do_on_two(corrected):
    _, first, second = corrected
    assert first["times"][0][1] <= first["times"][1][0], "--resources gpu=1"
    assert second["times"][1][0] < second["times"][0][1], "as nvidia-smi lists two"


def test_each_of_two_folds_at_once_sees_one_gpu(corrected):
    folder, _, _ = corrected
    seen = {re.search(r"CUDA_VISIBLE_DEVICES=(\S+)", log(folder, fold))[1] for fold in range(2)}
    assert seen == {"0", "1"}


def test_a_corrected_label_map_has_only_its_own_arrays_made_again(corrected):
    folder, first, second = corrected
    made = [case for case in first["arrays"] if first["arrays"][case] != second["arrays"][case]]
    own = [case.case for case in read_cases(folder / FILES.checked_cases) if case.fold == 1]
    assert len(first["arrays"]) == 6 and made == own[:1]


def test_only_the_trainings_that_learn_from_a_corrected_case_are_done_again(corrected):
    """The one that has it for validation ends where it was."""
    folder, first, second = corrected
    before, after = (one["models"][1] for one in (first, second))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "starts afresh" in log(folder, 0)
    assert "at step 3 after" in log(folder, 1)
