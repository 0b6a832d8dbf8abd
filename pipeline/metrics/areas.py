"""How much surface passes between eight neighbouring voxels, by which of them are inside.

Source: Nikolov et al. 2021, doi:10.2196/26151, as in DeepMind's surface-distance.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.metrics.arrays import Elements, Spacing


@lru_cache(maxsize=16)
def areas_mm2(spacing_mm: Spacing) -> Elements:
    """(256,) area of surface in the box between 8 voxel centres; the code's top bit is voxel (0, 0, 0).

    The surface cuts the box's edges half way, and wraps the voxels inside or outside, whichever are fewer;
    those not joined by an edge of the box it wraps apart.
    """
    areas_mm2 = np.zeros(256)
    for code in range(1, 255):
        voxels = np.unpackbits(np.array([code], dtype=np.uint8)).reshape(2, 2, 2)
        parts, num_parts = ndimage.label(voxels if voxels.sum() <= 4 else 1 - voxels)
        for part in range(1, num_parts + 1):
            areas_mm2[code] += _wrap_mm2(np.argwhere(parts == part), spacing_mm)
    return areas_mm2


def _wrap_mm2(voxels: NDArray[np.integer[Any]], spacing_mm: Spacing) -> float:
    """Area around 1 to 4 joined voxels, (V, 3), of one box: six shapes, told apart by size and `split`."""
    faces = math.prod(spacing_mm) / np.array(spacing_mm)  # mm2, of the box, across I, J, K
    split = np.minimum(voxels.sum(axis=0), len(voxels) - voxels.sum(axis=0))  # smaller side along each axis
    corner = float(np.linalg.norm(faces)) / 8  # triangle between the middles of three edges
    if len(voxels) == 1:
        return corner
    if len(voxels) == 2:  # a rectangle along their edge
        return float(np.linalg.norm(faces[split == 0])) / 2
    if len(voxels) == 3:  # an L: half of its face, and two triangles of one and two corners' area
        return float(faces[split == 0].sum()) / 2 + 3 * corner
    if split.min() == 0:  # a square: its face
        return float(faces[split == 0].sum())
    if split.max() == 1:  # one voxel and its three neighbours: a hexagon
        return 6 * corner
    flaps = [float(np.linalg.norm(np.delete(faces, axis))) / 4 for axis in np.flatnonzero(split == 1)]
    return 4 * corner + sum(flaps)  # a path along all three axes: a twisted hexagon
