"""How much volume two label maps share, label by label, from one joint histogram.

All overlaps are 0 to 1, of a label in one of the masks only 0, also where a share of nothing is asked for: a label that is
missed has no precision, and left out of a mean it would improve it. Of a label in neither they are None.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.arrays import Pair

Counts = NDArray[np.int64]  # (L + 1, L + 1) voxels; reference rank by row, prediction rank by column


def joint_histogram(pair: Pair, num_ranks: int) -> Counts:
    counts = np.zeros(num_ranks**2, dtype=np.int64)
    for plane, other in zip(*pair.both, strict=True):  # by plane: the codes are 8 bytes a voxel
        codes = plane.astype(np.intp)
        codes *= num_ranks
        codes += other
        counts += np.bincount(codes.ravel(), minlength=num_ranks**2)
    return counts.reshape(num_ranks, num_ranks)


def dsc(counts: Counts, rank: int) -> float | None:
    """Dice similarity: twice the shared volume over the sum of both."""
    return _share(2 * counts[rank, rank], counts[rank].sum() + counts[:, rank].sum())


def iou(counts: Counts, rank: int) -> float | None:
    """Intersection over union, or Jaccard index."""
    return _share(counts[rank, rank], counts[rank].sum() + counts[:, rank].sum() - counts[rank, rank])


def sensitivity(counts: Counts, rank: int) -> float | None:
    """The share of the reference that was found."""
    return _share(counts[rank, rank], counts[rank].sum() or counts[:, rank].sum())


def precision(counts: Counts, rank: int) -> float | None:
    """The share of the prediction that is right."""
    return _share(counts[rank, rank], counts[:, rank].sum() or counts[rank].sum())


def _share(part: np.int64, whole: np.int64) -> float | None:
    return float(part / whole) if whole else None
