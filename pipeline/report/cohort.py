"""The cohort as it was checked and fingerprinted to the rows of the report's cohort section.

Describes the cases that are trained with; what is wrong or unusual about one was said by `check`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.check.outliers import RULES
from pipeline.intensity import is_ct, percentiles
from pipeline.novelty import Seen, seen_in_training
from pipeline.plan import RAS_AXES
from pipeline.records import Case, Cohort
from pipeline.report.scores import Row

LARGEST_FOLD_TABLE = 8  # labels beside each other


def cohort_rows(
    fingerprint: Mapping[str, Any], cases: Sequence[Case], cohort: Cohort, problems: Sequence[Mapping[str, str]]
) -> Row:
    """
    Args:
        cases: with their folds; those of the fingerprint.
        problems: all that `check` found.
    """
    seen = seen_in_training(fingerprint)
    volumes_ml = {row["case"]: row.get("volumes_ml", {}) for row in fingerprint["cases"]}
    names = {target.name: str(target.label) for target in cohort.targets}
    return {
        "num_cases": len(cases),
        "sizes": size_rows(seen),
        "intensities": intensity_rows(seen, list(cohort.channels.values())),
        "volumes": [
            {"name": name, "label": label, **spread([own[name] for own in volumes_ml.values() if own[name]])}
            for name, label in names.items()
        ],
        "orientations": Counter(one.orientation for one in seen).most_common(),
        "folds": fold_rows(cases, volumes_ml, list(names)),
        "fold_labels": names if len(names) <= LARGEST_FOLD_TABLE else {},
        "outliers": [problem for problem in problems if problem["rule"] in RULES],
    }


def size_rows(seen: Sequence[Seen]) -> list[Row]:
    rows: list[Row] = []
    for axis, name in enumerate(RAS_AXES):
        spacings = [one.spacing_mm[axis] for one in seen]
        rows.append({"name": f"spacing along {name}", "unit": "mm", **spread(spacings)})
    for axis, name in enumerate(RAS_AXES):
        rows.append({"name": f"size along {name}", "unit": "voxels", **spread([one.shape[axis] for one in seen])})
    for axis, name in enumerate(RAS_AXES):
        fields = [one.spacing_mm[axis] * one.shape[axis] for one in seen]
        rows.append({"name": f"field of view along {name}", "unit": "mm", **spread(fields)})
    return rows


def intensity_rows(seen: Sequence[Seen], channels: Sequence[str]) -> list[Row]:
    rows: list[Row] = []
    for index, channel in enumerate(channels):
        found = [percentiles(one.intensity[index], is_absolute=True) for one in seen]
        unit = "HU" if is_ct(channel) else "as stored"
        for name in next(iter(found), {}):
            rows.append({"channel": channel, "name": name, "unit": unit, **spread([one[name] for one in found])})
    return rows


def fold_rows(cases: Sequence[Case], volumes_ml: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> list[Row]:
    """Of each fold how many cases and subjects, and how much of each label in the cases that have it."""
    rows = []
    for fold in sorted({case.fold for case in cases}):
        own = [case for case in cases if case.fold == fold]
        volumes = {name: [volumes_ml[case.case][name] for case in own if volumes_ml[case.case][name]] for name in names}
        rows.append(
            {
                "fold": fold,
                "num_cases": len(own),
                "num_subjects": len({case.subject for case in own}),
                "labels": {name: spread(found) for name, found in volumes.items()},
            }
        )
    return rows


def spread(values: Sequence[float]) -> Row:
    """How many, and their lowest, median, mean and highest; None for these of no value."""
    if not values:
        return {"n": 0, **dict.fromkeys(("low", "median", "mean", "high"))}
    middle = {"median": float(np.median(values)), "mean": float(np.mean(values))}
    return {"n": len(values), "low": min(values), **middle, "high": max(values)}
