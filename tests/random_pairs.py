"""Random pairs of masks for which a peer's numbers are kept, and how they were made.

`python tests/random_pairs.py`, with the package surface-distance-based-measures 0.1 installed, writes `random_pairs.tsv`.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TABLE = Path(__file__).with_suffix(".tsv")
COLUMNS = ("pair", "nsd", "hd95_mm", "hd_mm", "assd_mm")
NUM_PAIRS = 200
TOLERANCE_MM = 1.3
SPACINGS_MM = ((1.0, 1.0, 1.0), (0.7, 1.0, 2.5), (3.1, 0.4, 1.7), (0.8, 0.8, 2.5), (2.0, 1.3, 0.45))
Mask = NDArray[np.bool_]


def random_pairs() -> Iterator[tuple[Mask, Mask, tuple[float, ...]]]:
    """Reference, prediction and spacing: blobs that touch the edge, noise, far islands; never empty."""
    for seed in range(NUM_PAIRS):
        rng = np.random.default_rng(seed)
        shape = tuple(rng.integers(4, 15, 3).tolist())
        spacing_mm = SPACINGS_MM[seed % len(SPACINGS_MM)]
        smooth, other = (blurred(rng.random(shape), times=seed % 4) for _ in range(2))
        share = rng.uniform(0.02, 0.6)
        masks = [
            field >= np.quantile(field, 1 - share, method="higher")
            for field in (smooth, smooth + rng.uniform(0, 0.7) * other)
        ]
        yield masks[0], masks[1], spacing_mm


def blurred(field: NDArray[np.float64], *, times: int) -> NDArray[np.float64]:
    for _ in range(times):
        for axis in range(3):
            field = (field + np.roll(field, 1, axis) + np.roll(field, -1, axis)) / 3
    return field / field.std()


def peers_numbers(reference: Mask, prediction: Mask, spacing_mm: tuple[float, ...]) -> list[Any]:
    import surface_distance as peer

    found = peer.compute_surface_distances(reference, prediction, spacing_mm)
    forth, back = peer.compute_average_surface_distance(found)
    areas = found["surfel_areas_gt"].sum(), found["surfel_areas_pred"].sum()
    return [
        peer.compute_surface_dice_at_tolerance(found, TOLERANCE_MM),
        peer.compute_robust_hausdorff(found, 95),
        peer.compute_robust_hausdorff(found, 100),
        np.average([forth, back], weights=areas),
    ]


if __name__ == "__main__":
    with TABLE.open("w", newline="") as handle:
        writer = csv.writer(handle, delimiter="\t", lineterminator="\n")
        writer.writerow(COLUMNS)
        for number, pair in enumerate(random_pairs()):
            writer.writerow([number, *(f"{value:.9g}" for value in peers_numbers(*pair))])
