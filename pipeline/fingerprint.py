"""Checked cases to `fingerprint.json`: shapes, spacings and foreground intensities of the cohort, all in RAS order.

Of each case also what new scans are compared with. Describes; decides nothing.
"""

from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import errors, records
from pipeline.images import grid_of, open_image, read_labels_ras, read_ras
from pipeline.intensity import describe, nonzero_box
from pipeline.manifest import on_unchanged
from pipeline.novelty import look_at, volumes_ml
from pipeline.paths import Results
from pipeline.processes import map_cases
from pipeline.records import Case, Cohort

SAMPLES = 10_000_000  # foreground voxels in the whole cohort; nnU-Net takes 1e8, the percentiles agree to 3 digits


def main(results: str, threads: int = 1) -> None:
    files = Results(results)
    cases = records.read_cases(files.checked_cases)
    cohort = records.read_cohort(files.cohort)
    samples_per_case = max(1, SAMPLES // len(cases))
    look = partial(fingerprint_case, num_samples=samples_per_case, cohort=cohort)
    look = partial(on_unchanged, look, files.manifest, "all")
    found = map_cases(look, cases, range(len(cases)), processes=threads, desc="fingerprint")
    records.write_json(files.fingerprint, summarise(found, list(cohort.channels.values())))


def fingerprint_case(
    case: Case, seed: int, num_samples: int, cohort: Cohort
) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """The row of one case and (C, N) intensities sampled with replacement from its foreground."""
    assert case.label is not None, case
    channels, grids = zip(*(read_ras(path) for path in case.channels), strict=True)
    image = np.stack(channels)
    box = nonzero_box(image)
    row: dict[str, Any] = {
        "case": case.case,
        **asdict(look_at(image, box, grids[0], grid_of(open_image(case.channels[0])).orientation)),
        "shape_nonzero": [part.stop - part.start for part in box],
    }
    samples = np.empty((len(image), 0), np.float32)
    if cohort.is_regression:
        target = read_ras(case.label)[0]
        is_foreground = target != 0
        row["target_mean_square"] = (
            float(np.square(target[is_foreground], dtype=np.float64).mean()) if is_foreground.any() else None
        )
    else:
        labels = read_labels_ras(case.label)[0]
        row["volumes_ml"] = volumes_ml(labels, grids[0].spacing_mm, cohort)
        is_foreground = np.isin(labels, list(cohort.foreground))
    if (foreground := image[:, is_foreground]).shape[1]:
        samples = foreground[:, np.random.default_rng(seed).integers(foreground.shape[1], size=num_samples)]
    return row, samples


def summarise(found: list[tuple[dict[str, Any], NDArray[np.float32]]], channels: list[str]) -> dict[str, Any]:
    rows = [row for row, _ in found]
    pooled = np.concatenate([samples for _, samples in found], axis=1)
    squares = [square for row in rows if (square := row.get("target_mean_square")) is not None]
    kept = [np.prod(row["shape_nonzero"]) / np.prod(row["shape"]) for row in rows]
    return {
        "axes": "RAS",
        "num_cases": len(rows),
        "median_shape_nonzero": np.median([row["shape_nonzero"] for row in rows], axis=0).tolist(),
        "median_spacing_mm": np.median([row["spacing_mm"] for row in rows], axis=0).tolist(),
        "median_fraction_nonzero": float(np.median(kept)),
        "target_rms": float(np.sqrt(np.mean(squares))) if squares else None,
        "channels": [
            {"channel": name, **asdict(describe(values))} for name, values in zip(channels, pooled, strict=True)
        ],
        "cases": rows,
    }


if __name__ == "__main__":
    errors.run(main)
