"""Preprocessing beside the peers: one scan and its label map resampled, and a cohort from its files to prepared arrays.

`python -m tests.bench.preprocess --cohort DIR`, with nothing else running. Each measurement is a process of its own, in turns.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline import errors, resample
from pipeline.config import complete
from tests.bench.ours import Ours, machine, record, run
from tests.bench.peer import DATASET, INSIDE, PACKAGE, Peer, folds_of, installed, write_raw
from tests.bench.preprocess_once import SPACING_MM, TARGET_MM, write_case

CONFIGURATIONS = ("2d", "3d_fullres")
SYSTEMS = {
    "Segsnake": "ours",
    "SimpleITK, B-spline and label Gaussian": "spline",
    "SimpleITK, linear and nearest": "linear",
}
INSIDE_VOXELS = 12  # from the border, beyond which a spline does not notice how it goes on there
Found = dict[str, float]


def main(cohort: str = "", folder: str = ".bench", rounds: int = 2, threads: int = os.cpu_count() or 1) -> None:
    """Without a cohort only the resampling of one case, by one thread of either system as in their workers."""
    peer = installed(Path(folder), threads)
    with tempfile.TemporaryDirectory(prefix="preprocess-bench-") as place:
        compare_resampling(peer, Path(place), rounds)
        if cohort:
            compare_cohort(peer, Path(cohort), Path(place), rounds)


def compare_resampling(peer: Peer, place: Path, rounds: int) -> None:
    case = place / "case.npz"
    write_case(case)
    measures: dict[str, Callable[[Path], Found]] = {
        name: lambda result, system=system: once(system, case, result)  # type: ignore[misc]
        for name, system in SYSTEMS.items()
    }
    measures[PACKAGE] = lambda result: resample_inside(peer, case, result)
    found: dict[str, list[Found]] = {name: [] for name in measures}
    results = {name: place / f"{number}.npz" for number, name in enumerate(measures)}
    for _ in range(rounds):
        for name, measure in measures.items():
            found[name].append(measure(results[name]))
            print(f"resampling, {name}: {found[name][-1]}", flush=True)
    seconds = {
        name: {part: median(one[part] for one in of_system) for part in ("image_s", "labels_s")}
        for name, of_system in found.items()
    }
    ours, expected = np.load(results["Segsnake"]), by_scipy(np.load(case)["image"])
    first = sum(seconds["Segsnake"].values())
    size = "128x256x256 voxels of 2.5x0.8x0.8 mm, 8 labels, to 1.5 mm"
    rows = []
    for name, one in seconds.items():
        its = np.load(results[name])
        off, alike = largest_difference(its["image"], expected), (its["labels"] == ours["labels"]).mean()
        rows.append(
            (
                "resampling",
                name,
                f"{one['image_s']:.3f} + {one['labels_s']:.3f} s; {sum(one.values()) / first:.2g} times the first's",
                f"image within {off:.1g} of scipy's spline, {alike:.2%} of labels as the first's; {size}, {machine(1)}",
            )
        )
    record(rows)


def by_scipy(image: NDArray) -> NDArray:
    """The order of each axis as the rule for anisotropic grids wants it."""
    orders = resample.interpolation_orders(SPACING_MM, TARGET_MM, 3)
    shape = resample.resampled_shape(image.shape, SPACING_MM, TARGET_MM)
    for axis, order in enumerate(orders):
        factors = [1.0] * 3
        factors[axis] = shape[axis] / image.shape[axis]
        image = ndimage.zoom(image, factors, order=order, mode="nearest", grid_mode=True)
    return image


def largest_difference(image: NDArray, expected: NDArray) -> float:
    """Inside the volume, as a share of the range."""
    inside = (slice(INSIDE_VOXELS, -INSIDE_VOXELS),) * 3
    return float(np.abs(image - expected)[inside].max() / np.ptp(expected))


def once(system: str, case: Path, result: Path) -> Found:
    command = (sys.executable, "-m", "tests.bench.preprocess_once", "--system", system)
    return last_line(run("env", "OMP_NUM_THREADS=1", *command, "--case", case, "--result", result))


def resample_inside(peer: Peer, case: Path, result: Path) -> Found:
    spacings = (",".join(map(str, SPACING_MM)), ",".join(map(str, TARGET_MM)))
    options = ("--case", str(case), "--result", str(result), "--spacing", spacings[0], "--target", spacings[1])
    return last_line(peer.run(peer.python, INSIDE, "resample", *options, "--threads", "1"))


def last_line(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    return found


def compare_cohort(peer: Peer, cohort: Path, place: Path, rounds: int) -> None:
    """From the files to prepared arrays of both configurations: what either user waits for, all start-ups included."""
    description, cases = folds_of(cohort)
    write_raw(description, cases, place / "raw" / DATASET)
    measures: Mapping[str, Callable[[], None]] = {
        "Segsnake": lambda: prepare_ours(cohort, place, peer.threads),
        PACKAGE: lambda: prepare_inside(peer, place),
    }
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            begin = time.perf_counter()
            measure()
            seconds[name].append(time.perf_counter() - begin)
            print(f"cohort, {name}: {seconds[name][-1]:.1f} s", flush=True)
    middle = {name: median(of_system) for name, of_system in seconds.items()}
    notes = {
        "Segsnake": "discover, check, fingerprint, plan with its measured training steps, preprocess, by snakemake",
        PACKAGE: "nnUNetv2_plan_and_preprocess --verify_dataset_integrity",
    }
    setting = f"{len(cases)} cases, {' and '.join(CONFIGURATIONS)}; {rounds} rounds, {machine(peer.threads)}"
    record(
        [
            (
                "plan and preprocess",
                name,
                f"{one:.1f} s; {one / middle['Segsnake']:.2f} times the first's",
                f"{notes[name]}; {setting}",
            )
            for name, one in middle.items()
        ]
    )


def prepare_ours(cohort: Path, place: Path, threads: int) -> None:
    config = {"name": "ours", "cohort": str(cohort.resolve()), "device": "cpu", "threads": threads}
    ours = Ours(place / "ours", config)
    shutil.rmtree(ours.folder, ignore_errors=True)
    folds = range(complete(config)["folds"])
    targets = [ours.files.preprocessed(name, fold) for name in CONFIGURATIONS for fold in folds]
    ours.snakemake(*targets, threads=threads)


def prepare_inside(peer: Peer, place: Path) -> None:
    """In folders of its own, beside those that other benchmarks go on with."""
    own = Peer(place, peer.threads)
    shutil.rmtree(place / "preprocessed", ignore_errors=True)
    wanted = ("-d", "1", "-c", *CONFIGURATIONS, "-np", str(peer.threads), "--verify_dataset_integrity")
    own.run(peer.python.with_name("nnUNetv2_plan_and_preprocess"), *wanted)


if __name__ == "__main__":
    errors.run(main)
