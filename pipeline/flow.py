"""What the Snakefile asks of the configuration: which jobs there are, and the settings that each of them depends on.

A job's settings are JSON text, so that a changed value reruns exactly the stages that read it.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

from pipeline import errors, records
from pipeline.config import DEMO, LOW_RESOLUTION, PREVIOUS, complete, settings_of
from pipeline.errors import CohortError, ConfigError
from pipeline.gpus import SHARE, VISIBLE, gpu_ids
from pipeline.layouts import description, watched
from pipeline.paths import Fold, Results

ENGINE_MB = 400  # of a job on a cluster beside its stage: two of Snakemake's processes, 131 MiB each as measured
UNTIMED_MINUTES = 24 * 60  # of a training whose budget is no time; where it needs more it goes on in the next attempt
PREPARING = ("bias.py", "images.py", "intensity.py", "preprocess.py", "resample.py")


class Run:
    """A complete configuration; ends the process with one line if it is not valid."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        with errors.one_line():
            self.config = complete(_with_declared(config))
        self.began = time.time()
        self.name: str = self.config["name"]
        self.files = Results(self.name)
        self.configurations = list(self.config["configurations"])
        self.run_folds: list[int] = self.config["run_folds"]
        self.threads: int = self.config["threads"]

    def remove_abandoned(self) -> None:
        """Nothing else works on these results: Snakemake holds its lock."""
        from pipeline.abandoned import remove_abandoned  # not for the many jobs that parse the Snakefile too

        remove_abandoned(self.files.root)

    def show_headline(self) -> None:
        """Where the report was made since this run began."""
        from pipeline.headline import headline  # not for the many jobs that parse the Snakefile too

        if self.files.report.exists() and self.files.report.stat().st_mtime >= self.began:
            print(headline(self.files), flush=True)

    @property
    def folds(self) -> str:
        return ",".join(str(fold) for fold in self.run_folds)

    def settings(self, *keys: str) -> str:
        """One section's content, or several keys with their values."""
        return to_json(self.config[keys[0]] if len(keys) == 1 else {key: self.config[key] for key in keys})

    @property
    def cohort_settings(self) -> str:
        """Regions as pairs, for their order is lost when JSON sorts the keys."""
        keys = ("layout", "task", "labels", "channels", "ignore_label", "folds", "seed")
        return to_json({**{key: self.config[key] for key in keys}, "regions": list(self.config["regions"].items())})

    @property
    def check_settings(self) -> str:
        keys = ("folds", "seed", "on_problem")
        return to_json({**{key: self.config[key] for key in keys}, **self._asked})

    @property
    def _asked(self) -> dict[str, Any]:
        """What is asked of each file."""
        keys = ("xform", "nonfinite", "allow_unknown_orientation", "scan_gib")
        has_3d = any(one["dims"] == 3 for one in self.config["configurations"].values())
        return {**{key: self.config[key] for key in keys}, "has_3d": has_3d}

    def cohort_watched(self, _: Any) -> str:
        """Another text when `discover` would find something else, so that it runs again, whatever the clocks say."""
        return "" if self.config["cohort"] == DEMO else watched.digest(Path(self.config["cohort"]))

    @property
    def preparing_code(self) -> str:
        """The sha256 of what decides how arrays are made: Snakemake does not see that a module has changed."""
        texts = [(Path(__file__).parent / module).read_bytes() for module in PREPARING]
        return hashlib.sha256(b"".join(texts)).hexdigest()

    @property
    def predict_settings(self) -> str:
        """A mirrored copy is only worth predicting along axes that were mirrored in training."""
        return to_json(self._predict_settings)

    @property
    def inference_settings(self) -> str:
        """What is tried; a deterministic run asks no clock."""
        return to_json(
            {**self._predict_settings, **self.config["predict"], "deterministic": self.config["train"]["deterministic"]}
        )

    @property
    def _predict_settings(self) -> dict[str, Any]:
        train = self.config["train"]
        mirror = train["mirror"] if train["augment"] else []
        return {"train_mirror": mirror, "memory_gib": self.config["memory_gib"]}

    @property
    def segment_settings(self) -> str:
        """What is asked of new scans, how they are predicted, and whether that is mapped for uncertainty."""
        uncertainty = self.config["segment"]["uncertainty"]
        return to_json({**self._predict_settings, "asked": self._asked, "uncertainty": uncertainty})

    @property
    def now(self) -> str:
        """Never the same twice: a job that keeps finished work by itself is asked in every run, and knows of new scans."""
        return str(time.time_ns())

    def segment_memory(self, _: Any) -> int:
        """MiB of the largest new scan, by its header."""
        from pipeline.forecast import segment_mb  # takes half a second, and only `segment` needs it

        scans = Path(self.config.get("scans", ""))
        return ENGINE_MB + segment_mb(self.files, scans, self.run_folds[0], self.config["memory_gib"])

    @property
    def segment_shards(self) -> list[Path]:
        return [self.files.segment_shard(shard) for shard in range(self.config["segment"]["shards"])]

    @property
    def gpus_at_once(self) -> int:
        """How many GPUs all jobs on one machine may have together; without one, trainings take turns as if for one."""
        found = [] if self.config["device"] == "cpu" else gpu_ids()
        return int(max(len(found), self.config["train"]["gpus"]) * self.config["gpu_share"])

    @property
    def environment(self) -> str:
        """Shell assignments that every job gets; no parameters, for a changed one makes no result another."""
        hidden = f" {VISIBLE}=" if self.config["device"] == "cpu" else ""
        return f"{SHARE}={self.config['gpu_share']}{hidden}"

    @property
    def training_memory(self) -> int:
        """MiB: what a step takes on a CPU, with a margin, and as much for the cohort, which is read into memory if it fits."""
        return ENGINE_MB + ceil(1024 * (1 + 2.5 * self.config["memory_gib"]))

    @property
    def training_minutes(self) -> int:
        """The budget, and time to start, to read the cohort and to save."""
        minutes = self.config["train"].get("minutes")
        return ceil(1.25 * minutes) + 30 if minutes else UNTIMED_MINUTES

    @property
    def launch_training(self) -> str:
        """One process, or as many as there are GPUs to train with together."""
        gpus = self.config["train"]["gpus"]
        return "python -m" if gpus == 1 else f"torchrun --standalone --nproc-per-node {gpus} -m"

    @property
    def provenance(self) -> str:
        """The whole configuration, for the record; without what is for new scans, which the report does not describe."""
        return to_json({key: value for key, value in self.config.items() if key not in ("scans", "segment")})

    def probabilities(self, configuration: str, fold: Fold) -> list[Path]:
        """What `predict` leaves for `ensemble` besides masks: nothing if it has one configuration, or values, to combine."""
        is_needed = len(self.configurations) > 1 and self.config["task"] == "segmentation"
        return [self.files.probabilities(configuration, fold)] if is_needed else []

    @property
    def has_cascade(self) -> bool:
        """Whether a configuration learns from masks of another one: predicting those again would train it again."""
        return any(name in PREVIOUS for name in self.configurations)

    # input and params functions of rules: they get the wildcards of a job

    def configuration(self, wildcards: Any) -> str:
        """What one configuration sets, and what the cohort's channels do for all of them."""
        return to_json(settings_of(self.config, wildcards.configuration))

    def previous_plan(self, wildcards: Any) -> list[Path]:
        """Of the configuration whose masks this one refines, without which it is left out."""
        previous = PREVIOUS.get(wildcards.configuration)
        return [self.files.plan(previous)] if previous else []

    def previous_masks(self, wildcards: Any) -> list[Path]:
        """Of the fold's cases, which the configuration before this one has predicted without having seen them."""
        previous = PREVIOUS.get(wildcards.configuration)
        return [self.files.predicted(previous, wildcards.fold)] if previous else []

    def all_preprocessed(self, wildcards: Any) -> list[Path]:
        return [self.files.preprocessed(wildcards.configuration, fold) for fold in range(self.config["folds"])]

    def predict_memory(self, wildcards: Any, input: Any) -> int:
        """MiB of the largest case, which is known once `inference` has chosen: Snakemake asks again then."""
        return ENGINE_MB + int(records.read_json(Path(str(input.inference)))["mem_mb"])

    def first_trained(self, wildcards: Any) -> list[Path]:
        """The fold whose held-out cases decide how scans are cut."""
        return [self.files.model(wildcards.configuration, self.run_folds[0])]

    def all_predicted(self, _: Any) -> list[Path]:
        """Of the configurations that are trained whatever the cohort is like."""
        return self._predicted([name for name in self.configurations if not self._may_be_left_out(name)])

    def all_predicted_if_needed(self, checkpoints: Any) -> list[Path]:
        """Of the others: their plan has to be made before the workflow knows whether they are trained."""
        unsure = [name for name in self.configurations if self._may_be_left_out(name)]
        plans = {name: Path(checkpoints.plan.get(configuration=name).output[0]) for name in unsure}
        return self._predicted([name for name, path in plans.items() if not records.left_out(path)])

    def _may_be_left_out(self, name: str) -> bool:
        first = PREVIOUS.get(name, name)
        return first == LOW_RESOLUTION and "spacing_mm" not in self.config["configurations"][first]

    def _predicted(self, names: list[str]) -> list[Path]:
        jobs = [(name, fold) for name in names for fold in self.run_folds]
        return [file for job in jobs for file in (self.files.predicted(*job), *self.probabilities(*job))]


def _with_declared(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the user wrote, and what of the rest the cohort's dataset.json says, for the loss depends on it."""
    given = {key: value for key, value in config.items() if value not in (None, {})}
    if given.get("cohort") == DEMO or given.get("task") == "regression":
        return given
    place = Path(str(given.get("cohort", "")))
    declared = watched.config_of(place)
    _refuse_unusable({key: value for key, value in declared.items() if key not in given}, place)
    if isinstance(own := given.get("normalisation"), Mapping):  # channel by channel
        given["normalisation"] = declared.get("normalisation", {}) | {str(index): name for index, name in own.items()}
    return {**declared, **given}


def _refuse_unusable(declared: Mapping[str, Any], place: Path) -> None:
    """
    Raises:
        CohortError: what would be a mistake in config.yaml stands in the cohort's dataset.json.
    """
    try:
        complete({"name": DEMO, "cohort": DEMO, **declared})
    except ConfigError as error:
        found = str(error).removeprefix("config: ").rstrip(".")
        raise CohortError(
            f"{place / description.FILE}: {found}. Correct the file, or give {' and '.join(declared)} in config.yaml, which wins."
        ) from error


def to_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
