"""Groups of label values that lie inside or apart from each other, and the mask of one value per voxel that stands for them.

A region is painted with the lowest of its values that no later region has, over the regions before it: of `whole` 1 2 3,
then `core` 2 3, the whole is 1 and the core 2 in a mask. Knows numbers only.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Regions = Sequence[Sequence[int]]  # label values of each region, in the order in which they are painted


def crossing(regions: Regions) -> tuple[int, int] | None:
    """The places of two regions that share values, the later not a proper part of the earlier; None if there are none.

    Where two cross, no single value per voxel can say that it belongs to one of them only.
    """
    for (one, earlier), (other, later) in combinations(enumerate(map(set, regions)), 2):
        if earlier & later and not later < earlier:
            return one, other
    return None


def painted_values(regions: Regions) -> list[int]:
    """The value that stands for each region in a mask; 0 for a region whose values are all in later ones."""
    later = [{value for region in regions[place + 1 :] for value in region} for place in range(len(regions))]
    return [min(set(region) - taken, default=0) for region, taken in zip(regions, later, strict=True)]


def paint(masks: NDArray[np.bool_], regions: Regions) -> NDArray[np.int32]:
    """(R, I, J, K) to (I, J, K) label values; 0 where no region is."""
    painted = np.zeros(masks.shape[1:], np.int32)
    for mask, value in zip(masks, painted_values(regions), strict=True):
        painted[mask] = value
    return painted
