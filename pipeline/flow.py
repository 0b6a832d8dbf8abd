"""What the Snakefile asks of the configuration: which jobs there are, and the settings that each of them depends on.

A job's settings are JSON text, so that a changed value reruns exactly the stages that read it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import errors
from pipeline.config import complete
from pipeline.paths import Results


class Run:
    """A complete configuration; ends the process with one line if it is not valid."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        with errors.one_line():
            self.config = complete(config)
        self.name: str = self.config["name"]
        self.files = Results(self.name)
        self.configurations = list(self.config["configurations"])
        self.run_folds: list[int] = self.config["run_folds"]
        self.threads: int = self.config["threads"]

    @property
    def folds(self) -> str:
        return ",".join(str(fold) for fold in self.run_folds)

    def settings(self, *keys: str) -> str:
        """One section's content, or several keys with their values."""
        return to_json(self.config[keys[0]] if len(keys) == 1 else {key: self.config[key] for key in keys})

    @property
    def predict_settings(self) -> str:
        """A mirrored copy is only worth predicting along axes that were mirrored in training."""
        return to_json({**self.config["predict"], "mirror_axes": self.config["train"]["mirror"]})

    @property
    def provenance(self) -> str:
        """The whole configuration, for the record; without `scans`, which the report does not describe."""
        return to_json({key: value for key, value in self.config.items() if key != "scans"})

    # input and params functions of rules: they get the wildcards of a job

    def configuration(self, wildcards: Any) -> str:
        return to_json(self.config["configurations"][wildcards.configuration])

    def all_preprocessed(self, wildcards: Any) -> list[Path]:
        return [self.files.preprocessed(wildcards.configuration, fold) for fold in range(self.config["folds"])]

    def all_predicted(self, _: Any) -> list[Path]:
        return [self.files.predicted(name, fold) for name in self.configurations for fold in self.run_folds]


def to_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
