"""A plan and its results to the texts of a MONAI bundle: metadata.json, inference.json and README.md.

Knows MONAI's names, not its code: a bundle is plain data around a program. Imports no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.intensity import ForegroundIntensity, Scheme
from pipeline.plan import RAS_AXES, Plan, by
from pipeline.records import Cohort
from pipeline.regions import painted_values
from pipeline.windows import num_at_once

SCHEMA_URL = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
VERSION = "1.0.0"
TRANSFORMS = "scripts.transforms"  # pipeline/nn/bundle/transforms.py, inside the bundle
OVERLAP = 0.5  # of windows: what the faster settings of `inference` are measured against
REQUIRED = ("nibabel", "scipy")  # beside MONAI, torch and numpy
MEASURES = ("dsc", "nsd", "mae", "rmse")
TOWARDS = dict(zip(RAS_AXES, "RAS", strict=True))  # x, y, z run right, front and up
LABELS_TO = [["L", "R"], ["P", "A"], ["I", "S"]]  # MONAI's default, which depends on its version


@dataclass(frozen=True)
class About:
    """What a reader of a bundle wants to know beside the plan; `sources` are the sha256 of the files that it is made of."""

    cohort: Cohort
    num_cases: int
    num_subjects: int
    folds: tuple[str, ...]
    width: int
    scores: Mapping[str, Mapping[str, float]]  # by name of label: out-of-fold means
    sources: Mapping[str, str]


def describe(plan: Plan, about: About) -> dict[str, Any]:
    """`metadata.json`, as MONAI's `verify_metadata` wants it."""
    is_regression = plan.task == "regression"
    shape = list(plan.patch_size)
    is_hounsfield = set(plan.normalisation) == {"ct"}
    return {
        "schema": SCHEMA_URL,
        "version": VERSION,
        "changelog": {VERSION: "exported from a finished run"},
        "monai_version": version_of("monai"),
        "pytorch_version": version_of("torch"),
        "numpy_version": version_of("numpy"),
        "required_packages_version": {name: version_of(name) for name in REQUIRED},
        "task": f"{plan.task} of {', '.join(plan.channels)} scans",
        "description": f"{plan.network} ({plan.dims}D), the mean of {len(about.folds)} fold(s), trained on "
        f"{about.num_cases} cases of {about.cohort.name}",
        "authors": "whoever ran the training",
        "copyright": "scripts and configs: Apache-2.0; weights: whoever ran the training",
        "data_source": about.cohort.name,
        "data_type": "nibabel",
        "intended_use": "research; not a medical device",
        "eval_metrics": {name: dict(measures) for name, measures in about.scores.items()},
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "hounsfield" if is_hounsfield else "magnitude",
                    "modality": ", ".join(plan.channels),
                    "num_channels": len(plan.channels),
                    "spatial_shape": shape,
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": dict(enumerate(plan.channels)),
                }
            },
            "outputs": {
                "pred": {
                    "type": "image" if is_regression else "probabilities",
                    "format": "magnitude" if is_regression else "classes" if plan.regions else "labels",
                    "num_channels": plan.num_outputs,
                    "spatial_shape": shape,
                    "dtype": "float32",
                    "value_range": [] if is_regression else [0, 1],
                    "is_patch_data": True,
                    "channel_def": dict(enumerate(output_names(plan, about.cohort))),
                }
            },
        },
    }


def output_names(plan: Plan, cohort: Cohort) -> list[str]:
    """What each map of the network stands for."""
    if plan.task == "regression":
        return ["value"]
    return list(cohort.regions) if plan.regions else [cohort.labels[value] for value in plan.labels]


def configure(plan: Plan) -> dict[str, Any]:
    """`inference.json`: from the scans of a folder to their masks, step by step as in `preprocess` and `predict`."""
    return {
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/masks'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": f"{TRANSFORMS}.load_program",
            "path": "$@bundle_root + '/models/model.pt2'",
            "device": "@device",
        },
        "preprocessing": {"_target_": "Compose", "transforms": _preparation(plan)},
        "dataset": {
            "_target_": "Dataset",
            "data": {
                "_target_": f"{TRANSFORMS}.find_cases",
                "folder": "$str(@dataset_dir)",
                "num_channels": len(plan.channels),
            },
            "transform": "@preprocessing",
        },
        "inferer": {
            "_target_": "SlidingWindowInferer" if plan.dims == 3 else "SliceInferer",
            "roi_size": list(plan.patch_size),
            "sw_batch_size": num_at_once(plan.patch_size, "cpu"),
            "overlap": OVERLAP,
            "mode": "gaussian",
            "sw_device": "@device",
            "device": "cpu",
        },
        "postprocessing": {"_target_": "Compose", "transforms": _restoration(plan)},
        "evaluator": {
            "_target_": f"{TRANSFORMS}.Evaluator",
            "dataset": "@dataset",
            "network": "@network_def",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": ["$@evaluator.run()"],
    }


def _preparation(plan: Plan) -> list[dict[str, Any]]:
    """Axes turn to the plan's order at once; slices of a 2D plan are then those of the first axis."""
    rules = zip(plan.normalisation, plan.foreground_intensity, strict=True)
    return [
        {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader", "ensure_channel_first": True},
        {
            "_target_": "Orientationd",
            "keys": "image",
            "axcodes": "".join(TOWARDS[axis] for axis in plan.axes),
            "labels": LABELS_TO,
        },
        {
            "_target_": "CropForegroundd",
            "keys": "image",
            "source_key": "image",
            "select_fn": "$lambda image: image != 0 if image.any() else image == 0",
        },
        {
            "_target_": f"{TRANSFORMS}.Normalised",
            "keys": "image",
            "channels": [_normalisation(scheme, foreground) for scheme, foreground in rules],
        },
        {
            "_target_": f"{TRANSFORMS}.Resampled",
            "keys": "image",
            "spacing_mm": list(plan.spacing_mm),
            "order": plan.image_order,
        },
    ]


def _normalisation(scheme: Scheme, foreground: ForegroundIntensity) -> dict[str, Any]:
    if scheme != "ct":
        return {"scheme": scheme}
    return {
        "scheme": scheme,
        "low": foreground.percentile_00_5,
        "high": foreground.percentile_99_5,
        "mean": foreground.mean,
        "std": foreground.std,
    }


def _restoration(plan: Plan) -> list[dict[str, Any]]:
    values = painted_values(plan.regions) if plan.regions else list(plan.labels)
    meaning: list[dict[str, Any]] = []
    if plan.regions:
        meaning = [{"_target_": f"{TRANSFORMS}.Painted", "keys": "pred", "values": values}]
    elif plan.task == "segmentation":
        places = list(range(len(values)))
        meaning = [
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "MapLabelValued", "keys": "pred", "orig_labels": places, "target_labels": values},
        ]
    dtype = "float32" if plan.task == "regression" else str(np.min_scalar_type(max(values)))
    return [
        {
            "_target_": "Invertd",
            "keys": "pred",
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": False,
        },
        *meaning,
        {
            "_target_": "SaveImaged",
            "keys": "pred",
            "output_dir": "$str(@output_dir)",
            "output_postfix": "values" if plan.task == "regression" else "mask",
            "output_dtype": f"$np.{dtype}",
            "resample": False,
            "separate_folder": False,
            "writer": "NibabelWriter",
        },
    ]


def write_readme(plan: Plan, about: About, *, onnx: Sequence[str]) -> str:
    """`README.md`: what it is, made of what, how to run it, what it is good for and what not."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("bundle.md.j2").render(
        plan=plan,
        about=about,
        by=by,
        measures=[name for name in MEASURES if any(name in row for row in about.scores.values())],
        onnx=onnx,
        outputs=output_names(plan, about.cohort),
        version_of=version_of,
    )


def version_of(package: str) -> str:
    """Installed, without what the build adds, such as `+cpu`."""
    return metadata.version(package).partition("+")[0]
