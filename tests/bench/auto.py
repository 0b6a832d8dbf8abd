"""What `inference: auto` gains, and what it costs: every setting that it tried on phantoms several windows large.

`python -m tests.bench.auto --size 4 --minutes 5` makes the phantoms, trains fold 0 and records the table of the choice.
"""

import os
from pathlib import Path

from pipeline import errors, records
from pipeline.phantoms import write_cohort
from tests.bench.ours import CONFIGURATION, Ours, machine, record

FOLD = 0
PATCH = [32, 64, 64]  # along the plan's axes


def main(
    size: float = 4, minutes: float = 5, cases: int = 15, folder: str = ".bench", threads: int = os.cpu_count() or 1
) -> None:
    """`size`: of a phantom, 1 is 48 x 48 x 24 voxels."""
    cohort = Path(folder).resolve() / f"phantoms_{size:g}"
    if not cohort.exists():
        write_cohort(cohort, num_cases=cases, size=size)
    config = {
        "name": f"auto_{size:g}_{minutes:g}",
        "cohort": str(cohort),
        "configurations": {CONFIGURATION: {"dims": 3, "patch_size": PATCH}},
        "run_folds": [FOLD],
        "train": {"minutes": minutes},
        "threads": threads,
    }
    ours = Ours(Path(folder).resolve() / "ours", config)
    ours.snakemake(ours.files.inference(CONFIGURATION), threads=threads)
    found = records.read_json(ours.folder / ours.files.inference(CONFIGURATION))
    plan = records.read_json(ours.folder / ours.files.plan(CONFIGURATION))
    reference = found["tried"][0]
    sizes = " x ".join(str(round(edge)) for edge in plan["median_shape"])
    setting = f"scans of about {sizes}, patch {' x '.join(map(str, plan['patch_size']))}, {machine(threads)}"
    rows = []
    for tried in found["tried"]:
        is_taken = all(tried[key] == found[key] for key in ("window", "overlap", "mirror"))
        speed = reference["seconds"] / tried["seconds"]
        figure = f"{tried['seconds']:.1f} s, {speed:.1f} times as fast, DSC {tried['score']:.4f}"
        rows.append(("inference: auto", tried["name"] + (", taken" if is_taken else ""), figure, setting))
    record(rows)


if __name__ == "__main__":
    errors.run(main)
