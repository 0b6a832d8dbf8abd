"""Predicted values and references to errors of each case, and their means with intervals: `evaluate` of a regression.

Errors have the unit of the reference. Knows nothing of how a prediction came about. Imports no torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.bootstrap import INTERVAL_PERCENT, SEED, draw_cases, means
from pipeline.images import Volume, read_ras, refuse_other_grid
from pipeline.records import Case

TARGET = "target"  # stands for a label: there is one image of values
MEASURES = ("mae", "rmse")
SUMMARY_COLUMNS = (
    *("configuration", "label", "name", "n", "n_dropped"),
    *(f"{measure}{end}" for measure in MEASURES for end in ("", "_low", "_high")),
)


@dataclass(frozen=True)
class ErrorScore:
    """One row of `metrics.tsv`: how far the values of one case are off in one configuration."""

    configuration: str
    fold: int
    case: str
    label: str
    name: str
    status: str
    mae: float
    rmse: float
    reference_mean: float
    prediction_mean: float
    subject: str


def mean_absolute_error(reference: Volume, prediction: Volume) -> float:
    return float(np.abs(prediction - reference).mean(dtype=np.float64))


def root_mean_square_error(reference: Volume, prediction: Volume) -> float:
    return math.sqrt(np.square(prediction - reference).mean(dtype=np.float64))


def measure_case(case: Case, predictions: Mapping[str, Path]) -> list[ErrorScore]:
    """One score for each configuration's prediction, over all voxels of the scan.

    Raises:
        ImageError: a file cannot be read, or a prediction does not lie on the grid of the reference.
    """
    assert case.label is not None, case
    reference, grid = read_ras(case.label)
    scores = []
    for configuration, path in predictions.items():
        prediction, found = read_ras(path)
        refuse_other_grid(path, found, case.label, grid)
        scores.append(
            ErrorScore(
                configuration=configuration,
                fold=case.fold,
                case=case.case,
                label=TARGET,
                name=TARGET,
                status="ok",
                mae=mean_absolute_error(reference, prediction),
                rmse=root_mean_square_error(reference, prediction),
                reference_mean=float(reference.mean(dtype=np.float64)),
                prediction_mean=float(prediction.mean(dtype=np.float64)),
                subject=case.subject,
            )
        )
    return scores


def summarise(scores: Sequence[ErrorScore], *, seed: int = SEED) -> list[dict[str, object]]:
    """Means over cases, one row per configuration, with 95 % intervals from a bootstrap over subjects (None for one)."""
    rows = []
    for configuration in dict.fromkeys(score.configuration for score in scores):
        own = [score for score in scores if score.configuration == configuration]
        resamples = draw_cases([score.subject for score in own], seed=seed)
        row: dict[str, object] = {"configuration": configuration, "label": TARGET, "name": TARGET, "n": len(own)}
        for name in MEASURES:
            values = np.array([[getattr(score, name)] for score in own])
            low, high = np.percentile(means(values, resamples)[:, 0], INTERVAL_PERCENT).tolist()
            has_spread = len({score.subject for score in own}) >= 2
            row |= {name: float(values.mean())}
            row |= {f"{name}_low": low, f"{name}_high": high} if has_spread else {}
        rows.append(row)
    return rows
