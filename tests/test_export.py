"""Bundles of a trained run do elsewhere what is done here: the same masks, on the same grid, without this project."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from pipeline import export, records
from pipeline.config import fitting_losses
from pipeline.errors import ExportError, TrainingError
from pipeline.metrics import dsc
from pipeline.nn import programs
from pipeline.nn.checkpoints import load_model, save_model
from pipeline.nn.losses import make_loss
from pipeline.nn.networks import build_network
from pipeline.paths import Results
from pipeline.plan import Width
from pipeline.predict import predict_case, write_prediction
from pipeline.preprocess import prepare, read_channels
from pipeline.records import Case, Cohort
from pipeline.windows import Window
from tests.test_bundle import SPACING_MM, TWO_CHANNELS, make_scan, save_scan
from tests.test_networks import CPU
from tests.test_preprocess import make_plan

WIDTH, STEPS = 6, 60
STAGES = dict(kernels=((3, 3, 3),) * 3, strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)))
SLICES = dict(kernels=((3, 3),) * 3, strides=((1, 1), (2, 2), (2, 2)))
IN_3D = dict(dims=3, patch_size=(16, 24, 24), spacing_mm=(2.5, 1.0, 1.0), **STAGES)
IN_2D = dict(dims=2, patch_size=(24, 16), spacing_mm=(None, 1.0, 2.0), axes="yxz", **SLICES)
LABELS = {0: "background", 2: "organ", 5: "lesion"}
REGIONS = {"whole": [2, 5], "lesion": [5]}
# plan, cohort
RUNS = {
    "labels_3d": ({**IN_3D, **TWO_CHANNELS, "normalisation": ("ct", "zscore_nonzero")}, {}),
    "labels_2d": (IN_2D, {}),
    "regions_3d": ({**IN_3D, "regions": ((2, 5), (5,))}, {"regions": REGIONS}),
    "values_2d": ({**IN_2D, "task": "regression", "target_scale": 4.0}, {"labels": {}, "task": "regression"}),
}


def teach(plan, seed):
    """A network that has learnt enough for borders that do not hang on the last digit."""
    torch.manual_seed(seed)
    network = build_network(plan, WIDTH).train()
    channels, labels = make_scan(num_channels=len(plan.channels), seed=seed)
    prepared = prepare(channels, SPACING_MM, plan, labels)
    measure = make_loss({"loss": fitting_losses(plan.task, bool(plan.regions))[0], "class_weights": []}, plan)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    rng = np.random.default_rng(seed)
    kind = np.float32 if plan.task == "regression" else np.int16
    both = [torch.from_numpy(prepared.image), torch.from_numpy(prepared.classes.astype(kind)[None])]
    edges = (*(1,) * (3 - plan.dims), *plan.patch_size)
    for _ in range(STEPS):
        sizes = zip(both[0].shape[1:], edges, strict=True)
        starts = np.stack([rng.integers(0, size - edge, 2, endpoint=True) for size, edge in sizes], axis=1)
        image, reference = (torch.stack([cut(array, start, edges, plan) for start in starts]) for array in both)
        loss = measure(network(image), reference)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def cut(array, start, edges, plan):
    patch = array[(slice(None), *(slice(first, first + edge) for first, edge in zip(start, edges, strict=True)))]
    return patch[:, 0] if plan.dims == 2 else patch


def write_mask(path, models, scan):
    """As `segment` does with the reference setting of `inference`."""
    plan = models[0].plan
    prepared = prepare(*read_channels(Case("new", "new", 0, None, tuple(scan))), plan)
    window = Window(plan.patch_size, 0.5)
    prediction = predict_case(models, prepared.image, prepared.placement, CPU, window, case="new")
    write_prediction(path, [prediction], plan, scan[0])


@pytest.fixture(scope="module")
def run(request, tmp_path_factory):
    """A folder with a run of two taught folds, a new scan, our mask of it, and the bundle."""
    folder = tmp_path_factory.mktemp(request.param)
    changes, of_cohort = RUNS[request.param]
    form = f"float32 channels_last{'_3d' if changes['dims'] == 3 else ''}"  # as in the bundle, whatever is fastest here
    widths = (Width(WIDTH, 1.0, form, "cpu"),)
    plan = make_plan(configuration=request.param, widths=widths, **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        files = Results("tiny")
        cohort = {"labels": LABELS, "channels": dict(enumerate(plan.channels)), **of_cohort}
        records.write_cohort(files.cohort, Cohort(name="phantoms", layout="MSD", **cohort))
        records.write_cases(files.checked_cases, [Case("a", "a", 0, None, (Path("a.nii.gz"),) * len(plan.channels))])
        for fold in (0, 1):
            save_model(files.model(request.param, fold), teach(plan, fold).state_dict(), WIDTH, plan)
        records.write_json(files.choice, {"for_new_scans": [request.param]})
        paths = save_scan(folder / "scans", "new", make_scan(num_channels=len(plan.channels), seed=7)[0])
        write_mask(
            folder / "ours.nii.gz", [load_model(files.model(request.param, fold), CPU.where) for fold in (0, 1)], paths
        )
        export.main("tiny", "0,1")
    return folder


def assert_same(run, folder):
    """The one file in the folder lies on the voxels of our mask and says the same."""
    (path,) = folder.iterdir()
    ours, theirs = (nib.load(file) for file in (run / "ours.nii.gz", path))
    assert theirs.shape == ours.shape
    assert np.allclose(theirs.affine, ours.affine, atol=1e-4)
    assert theirs.get_data_dtype() == ours.get_data_dtype()
    expected, found = (np.asarray(image.dataobj) for image in (ours, theirs))
    if ours.get_data_dtype() == np.float32:
        assert path.name == "new_values.nii.gz"
        # not the largest: MONAI gives the corners of a window, where its output is worst, a little more weight
        assert np.abs(found - expected).mean() < 0.05 * np.abs(expected).max()
        return
    assert path.name in ("new_mask.nii.gz", "new_0000_mask.nii.gz")
    assert set(np.unique(expected)) == {0, 2, 5}, "the networks have learnt something"
    assert min(dsc(expected, found, labels=(2, 5))) > 0.98


@pytest.mark.parametrize("run", RUNS, indirect=True)
def test_a_bundle_gives_our_masks(run, tmp_path, monkeypatch):
    """A scan that is oblique, anisotropic and not in RAS order; labels, regions and values; slices and volumes."""
    (bundle,) = (run / "results/tiny/export").iterdir()
    monkeypatch.setattr(sys, "path", [*sys.path])  # MONAI adds the bundle's folder
    places = {"bundle_root": str(bundle), "dataset_dir": str(run / "scans"), "output_dir": str(tmp_path / "masks")}
    workflow = ConfigWorkflow(str(bundle / "configs/inference.json"), workflow_type="infer", **places)
    workflow.initialize()
    workflow.run()
    assert workflow.check_properties() == []
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        del sys.modules[name]
    assert_same(run, tmp_path / "masks")


@pytest.mark.parametrize("run", ["labels_3d"], indirect=True)
def test_a_bundle_runs_in_any_folder_where_this_project_cannot_be_imported(run, tmp_path):
    bundle = shutil.move(shutil.copytree(run / "results/tiny/export/labels_3d", tmp_path / "copy"), tmp_path / "moved")
    forbidden = tmp_path / "forbidden" / "pipeline"
    forbidden.mkdir(parents=True)
    (forbidden / "__init__.py").write_text("raise ImportError('the bundle imports the project')")
    (tmp_path / "elsewhere").mkdir()
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", f"{bundle}/configs/inference.json"]
    command += ["--bundle_root", bundle, "--dataset_dir", run / "scans", "--output_dir", tmp_path / "masks"]
    done = subprocess.run(
        command,
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(forbidden.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(run, tmp_path / "masks")


@pytest.mark.parametrize("run", ["labels_3d"], indirect=True)
def test_a_bundle_has_every_file_that_its_readme_names(run):
    bundle = run / "results/tiny/export/labels_3d"
    # other tests run the scripts, of which Python may keep bytecode
    files = (path for path in bundle.rglob("*") if path.is_file() and path.suffix != ".pyc")
    found = {str(path.relative_to(bundle)) for path in files}
    assert found == {
        *("LICENSE", "docs/README.md", "configs/metadata.json", "configs/inference.json"),
        *("scripts/__init__.py", "scripts/transforms.py", "models/model.pt2"),
        *("models/fold_0.onnx", "models/fold_1.onnx"),
    }
    text = (bundle / "docs/README.md").read_text()
    for name in found - {"LICENSE", "docs/README.md", "scripts/__init__.py"}:
        assert name in text
    digest = records.sha256(run / "results/tiny/train/labels_3d/fold_1/model.pt")
    assert f"{digest}  results/tiny/train/labels_3d/fold_1/model.pt" in text


@pytest.fixture
def untaught(tmp_path, monkeypatch):
    """A run of one small configuration that has learnt nothing."""
    monkeypatch.chdir(tmp_path)
    files, plan = Results("tiny"), make_plan(configuration="one", **IN_2D)
    records.write_cohort(files.cohort, Cohort("phantoms", "MSD", LABELS, {0: "MRI"}))
    records.write_cases(files.checked_cases, [Case("a", "a", 0, None, (Path("a.nii.gz"),))])
    save_model(files.model("one", 0), build_network(plan, WIDTH).state_dict(), WIDTH, plan)
    records.write_json(files.choice, {"for_new_scans": ["one"]})
    return files


def test_without_the_onnx_packages_the_bundle_is_whole_and_the_log_says_how_to_get_them(untaught, monkeypatch, capsys):
    monkeypatch.setattr(programs, "ONNX_PACKAGES", ("nowhere_to_be_found",))
    export.main("tiny", "0")
    assert untaught.bundle("one").metadata.exists()
    assert not list(untaught.export.rglob("*.onnx"))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "no ONNX" in line]
    assert "`pip install --constraint envs/constraints.txt nowhere_to_be_found`" in line


def test_the_bundle_of_an_earlier_choice_goes_and_scores_come_with_the_new_one(untaught):
    (untaught.export / "other").mkdir(parents=True)
    rows = [{"configuration": name, "name": "organ", "dsc": 0.75, "nsd": None} for name in ("one", "ensemble")]
    records.write_table(untaught.summary, ["configuration", "name", "dsc", "nsd"], rows)
    export.main("tiny", "0")
    assert [path.name for path in untaught.export.iterdir()] == ["one"]
    assert records.read_json(untaught.bundle("one").metadata)["eval_metrics"] == {"organ": {"dsc": 0.75}}


def test_a_cascade_has_no_bundle_and_the_log_says_so(untaught, capsys):
    changes = {**IN_3D, "previous": "3d_lowres"}
    plan = make_plan(configuration="cascade", **changes)
    save_model(untaught.model("cascade", 0), build_network(plan, WIDTH).state_dict(), WIDTH, plan)
    records.write_json(untaught.choice, {"for_new_scans": ["cascade", "one"]})
    export.main("tiny", "0")
    assert "cascade: no bundle, for it refines masks that another network makes, 3d_lowres." in capsys.readouterr().out
    assert [path.name for path in untaught.export.iterdir()] == ["one"]
    records.write_json(untaught.choice, {"for_new_scans": ["cascade"]})
    with pytest.raises(ExportError, match=r"^cascade: chosen for new scans, yet what refines the masks"):
        export.main("tiny", "0")


def test_a_network_that_reads_scans_after_n4_has_no_bundle():
    assert export.without_bundle(make_plan(bias_corrected=(0,))) == "it reads scans whose brightness N4 has made even"
    assert export.without_bundle(make_plan()) == ""


def test_nothing_is_exported_before_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainingError, match=r"nothing is trained yet\. Run `snakemake --cores 8` first"):
        export.main("tiny", "0")
