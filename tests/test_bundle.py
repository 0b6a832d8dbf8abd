"""What a bundle says and does to a scan is what the project says and does; MONAI's own tools read it."""

import ast
import dataclasses
import json
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser, verify_metadata
from nibabel.affines import apply_affine, from_matvec
from scipy.spatial.transform import Rotation

import pipeline.nn.bundle.transforms as transforms
from pipeline import intensity, resample
from pipeline.bundle import About, configure, describe, write_readme
from pipeline.intensity import ForegroundIntensity
from pipeline.preprocess import prepare, read_channels
from pipeline.records import Case, Cohort, sha256
from tests.test_preprocess import make_plan

ROOT = Path(__file__).parents[1]
SPACING_MM = (0.8, 0.9, 3.0)
OBLIQUE = from_matvec(
    Rotation.from_euler("xz", (7, -5), degrees=True).as_matrix() @ np.diag(SPACING_MM), (-11.0, 7.0, 30.0)
)
FOREGROUND = ForegroundIntensity(100.0, 100.0, 30.0, 0.0, 200.0, 30.0, 190.0)
TWO_CHANNELS = dict(channels=("CT", "T2"), normalisation=("ct", "zscore"), foreground_intensity=(FOREGROUND,) * 2)
TENSOR = {
    "type": "object",
    "properties": {
        **{key: {"type": "string"} for key in ("type", "format", "modality", "dtype")},
        "num_channels": {"type": "integer"},
        "spatial_shape": {"type": "array", "items": {"type": "integer"}},
        "value_range": {"type": "array", "items": {"type": "number"}},
        "is_patch_data": {"type": "boolean"},
        "channel_def": {"type": "object"},
    },
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"],
    "additionalProperties": False,
}
TEXTS = ("schema", "version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors")
OWN_TEXTS = ("copyright", "data_source", "data_type", "intended_use")
OBJECTS = ("changelog", "required_packages_version", "eval_metrics")
# What the schema that `schema` names demands (read in November 2026), and more: nothing but these keys.
SCHEMA = {
    "type": "object",
    "properties": {
        **{key: {"type": "string"} for key in (*TEXTS, *OWN_TEXTS)},
        **{key: {"type": "object"} for key in OBJECTS},
        "network_data_format": {
            "type": "object",
            "properties": {key: {"type": "object", "additionalProperties": TENSOR} for key in ("inputs", "outputs")},
            "required": ["inputs", "outputs"],
            "additionalProperties": False,
        },
    },
    "required": [*TEXTS, "copyright", "required_packages_version", "network_data_format"],
    "additionalProperties": False,
}
PLANS = {
    "labels": {},
    "regions": {"regions": ((2, 5), (5,))},
    "values": {"task": "regression", "target_scale": 40.0},
    "slices": {"dims": 2, "patch_size": (24, 16), "spacing_mm": (None, 1.0, 2.0), **TWO_CHANNELS},
}
COHORTS = {
    "regions": {"regions": {"whole": [2, 5], "core": [5]}},
    "values": {"task": "regression"},
}


def about_of(name):
    labels = {} if name == "values" else {0: "background", 2: "organ", 5: "lesion"}
    return About(
        cohort=Cohort("phantoms", "MSD", labels, {0: "MRI"}, **COHORTS.get(name, {})),
        num_cases=7,
        num_subjects=6,
        folds=("0", "1"),
        width=8,
        scores={"organ": {"dsc": 0.91234, "nsd": 0.8}, "lesion": {"dsc": 0.5}},
        sources={"results/x/model.pt": "ab12"},
    )


def make_scan(*, num_channels=1, seed=0):
    """(C, I, J, K) and labels (I, J, K) in RAS order: a body in a dark frame with a bright organ and a dark lesion."""
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, size) for size in (34, 30, 16)), indexing="ij")
    body = i**2 + j**2 + k**2 < 0.9
    labels = np.zeros(body.shape, np.uint8)
    labels[(i - 0.4) ** 2 + j**2 + k**2 < 0.12] = 2
    labels[(i + 0.4) ** 2 + j**2 + k**2 < 0.12] = 5
    noise = np.random.default_rng(seed).normal(0, 5, (num_channels, *body.shape))
    contrast = np.where(body, 100, 0) + 80 * (labels == 2) - 60 * (labels == 5)
    return np.where(body, contrast + noise, 0).astype(np.float32), labels


def save_scan(folder, name, channels, affine=OBLIQUE, axcodes="PSL"):
    """Files of the channels, stored along other axes than RAS."""
    folder.mkdir(parents=True, exist_ok=True)
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(axcodes)))
    paths = []
    for index, channel in enumerate(channels):
        suffix = f"_{index:04d}" if len(channels) > 1 else ""
        paths.append(folder / f"{name}{suffix}.nii.gz")
        nib.save(nib.Nifti1Image(channel, affine).as_reoriented(turn), paths[-1])
    return paths


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """The package `scripts` of a bundle, importable as inside it."""
    shutil.copytree(ROOT / "pipeline" / "nn" / "bundle", tmp_path / "bundle" / "scripts")
    monkeypatch.syspath_prepend(tmp_path / "bundle")
    yield tmp_path / "bundle"
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        del sys.modules[name]


def parsed(plan):
    return ConfigParser(json.loads(json.dumps(configure(plan))))


@pytest.mark.parametrize(
    ("changes", "num_channels"),
    [
        ({}, 1),
        ({"normalisation": ("rescale",)}, 1),
        ({"normalisation": ("percentile",), "image_order": 1}, 1),
        ({"normalisation": ("zscore_nonzero",), "spacing_mm": (3.0, 0.9, 0.8)}, 1),
        ({"normalisation": ("none",), "axes": "xzy", "spacing_mm": (1.5, 4.0, 1.0)}, 1),
        ({**TWO_CHANNELS, "normalisation": ("ct", "zscore")}, 2),
        ({**PLANS["slices"], "normalisation": ("ct", "zscore_nonzero"), "axes": "yxz"}, 2),
    ],
)
def test_a_bundle_prepares_a_scan_as_we_do(tmp_path, scripts, changes, num_channels):
    plan = make_plan(**changes)
    paths = save_scan(tmp_path / "scans", "a", make_scan(num_channels=num_channels)[0])
    expected = prepare(*read_channels(Case("a", "a", 0, None, tuple(paths))), plan).image
    preprocessing = parsed(plan).get_parsed_content("preprocessing")
    found = preprocessing({"image": [str(path) for path in paths]})["image"]
    assert found.shape == expected.shape
    assert np.allclose(found.array, expected, atol=1e-4)


def test_a_prediction_goes_back_to_the_voxels_that_came_in(tmp_path, scripts):
    """The scan itself is the prediction: linear there and back, on a grid so fine that it hardly changes."""
    (path,) = save_scan(tmp_path / "scans", "a", make_scan()[0])
    plan = make_plan(normalisation=("none",), spacing_mm=(3.0, 0.4, 0.4))
    parser = parsed(plan)
    case = parser.get_parsed_content("preprocessing")({"image": [str(path)]})
    middle = np.array(case["image"].shape[1:]) / 2 - 0.5
    inverted = parser.get_parsed_content("postprocessing").transforms[0]({**case, "pred": case["image"].clone()})[
        "pred"
    ]
    scan = nib.load(path)
    assert inverted.shape == (1, *scan.shape)
    assert np.allclose(inverted.affine, scan.affine)
    voxels = np.asarray(scan.dataobj)
    assert np.abs(inverted.array[0] - voxels).mean() < 1.5
    box = np.argwhere(voxels != 0)
    centre = (box.min(axis=0) + box.max(axis=0)) / 2
    assert np.allclose(apply_affine(case["image"].affine.numpy(), middle), apply_affine(scan.affine, centre)), (
        "the world position of the centre"
    )


def test_an_empty_scan_is_not_cropped_to_nothing(tmp_path, scripts):
    (path,) = save_scan(tmp_path / "scans", "a", np.zeros((1, 18, 22, 13), np.float32))
    image = parsed(make_plan()).get_parsed_content("preprocessing")({"image": [str(path)]})["image"]
    assert image.shape == prepare(np.zeros((1, 18, 22, 13), np.float32), SPACING_MM, make_plan()).image.shape
    assert not image.any()


@pytest.mark.parametrize("scheme", ["ct", "zscore", "zscore_nonzero", "percentile", "rescale", "none"])
@pytest.mark.parametrize("channel", [make_scan()[0][0], np.zeros((3, 4, 5), np.float32), np.full((3, 4, 5), 7.0)])
def test_intensities_are_ours(scheme, channel):
    rule = dict(low=30.0, high=190.0, mean=100.0, std=30.0) if scheme == "ct" else {}
    expected = intensity.normalise(channel, scheme, FOREGROUND)
    assert np.allclose(transforms.normalise(channel, scheme, **rule), expected, atol=1e-6)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (3.0, 1, 1), (3.1, 1, 1), (3.1, 1, 3.1), (1, 4, 1)])
@pytest.mark.parametrize("target", [(1, 1, 1), (1, 1, 5)])
def test_the_rule_for_coarse_axes_is_ours(spacing, target):
    assert tuple(transforms.interpolation_orders(spacing, target, 3)) == resample.interpolation_orders(
        spacing, target, 3
    )


def test_regions_are_painted_in_order(tmp_path):
    probabilities = transforms.MetaTensor(np.array([[0.9, 0.9, 0.4, 0.5], [0.2, 0.7, 0.6, 0.1]], np.float32))
    painted = transforms.Painted("pred", values=[2, 5])({"pred": probabilities})["pred"]
    assert painted.tolist() == [[2, 5, 5, 0]]


def test_channels_of_a_case_are_found_in_order(tmp_path):
    for name in ("b_0001.nii", "b_0000.nii", "a_0000.nii.gz", "a_0001.nii.gz", "readme.txt"):
        (tmp_path / name).touch()
    assert transforms.find_cases(str(tmp_path), 2) == [
        {"image": [str(tmp_path / f"{case}_000{index}{end}") for index in range(2)]}
        for case, end in (("a", ".nii.gz"), ("b", ".nii"))
    ]
    assert len(transforms.find_cases(str(tmp_path), 1)) == 4


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no NIfTI file"),
        (["a_0000.nii"], "a: a_0001 missing in .*: one file per channel expected"),
        (["a_0000.nii", "a_0000.nii.gz"], "2 files with 1 names. Keep one of .nii and .nii.gz"),
    ],
)
def test_scans_that_a_bundle_cannot_read_are_refused_by_name(tmp_path, names, message):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        transforms.find_cases(str(tmp_path), 2)


def verify(folder, metadata):
    """As MONAI's command does; where the schema is there already, it downloads none."""
    schema, file = folder / "schema.json", folder / "metadata.json"
    schema.write_text(json.dumps(SCHEMA))
    file.write_text(json.dumps(metadata))
    verify_metadata(meta_file=str(file), filepath=str(schema), hash_val=sha256(schema), hash_type="sha256")


@pytest.mark.parametrize("name", PLANS)
def test_metadata_passes_monais_verification(tmp_path, name):
    metadata = describe(make_plan(**PLANS[name]), about_of(name))
    verify(tmp_path, metadata)
    del metadata["network_data_format"]["outputs"]["pred"]["dtype"]
    with pytest.raises(ValueError, match="'dtype' is a required property"):
        verify(tmp_path, metadata)


@pytest.mark.parametrize("name", PLANS)
def test_the_readme_says_what_goes_in_and_comes_out(name):
    plan = make_plan(**PLANS[name])
    text = write_readme(plan, about_of(name), onnx=["fold_0.onnx"])
    assert {
        "labels": "| 2 | lesion | 5 |",
        "regions": "| 1 | core | 5 | 5 |",
        "values": "in the unit of the training targets",
        "slices": "`case_0000.nii.gz` (CT), `case_0001.nii.gz` (T2)",
    }[name] in text
    assert {"slices": "z as in the scan, y 1.0 mm, x 2.0 mm"}.get(name, "z 2.5 mm, y 1.0 mm, x 0.7 mm") in text
    assert "| organ | 0.912 | 0.800 |\n| lesion | 0.500 |  |\n" in text
    assert "ab12  results/x/model.pt" in text
    assert "7 cases of 6 subjects, folds 0, 1" in text
    assert "`models/fold_0.onnx`" in text
    assert "\n\n\n\n" not in text


def test_a_readme_without_scores_and_onnx_has_no_empty_parts():
    about = dataclasses.replace(about_of("labels"), scores={})
    text = write_readme(make_plan(), about, onnx=[])
    assert "Out-of-fold" not in text
    assert ".onnx" not in text


def test_the_scripts_of_a_bundle_import_nothing_of_this_project():
    allowed = {*sys.stdlib_module_names, "numpy", "scipy", "torch", "monai"}
    for path in (ROOT / "pipeline" / "nn" / "bundle").glob("*.py"):
        modules = []
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                modules.append(node.module)
            elif isinstance(node, ast.Import):
                modules += [alias.name for alias in node.names]
        assert {name.partition(".")[0] for name in modules} <= allowed, path
