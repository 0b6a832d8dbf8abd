"""How sure networks are of one scan, from their probabilities: the DSC to expect of each label, entropy and disagreement.

Slabs are (L, d, H, W), parts of a volume along its first axis, so that no volume of all labels is held. Knows neither files
nor networks.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from pipeline.images import Volume
from pipeline.plan import Plan


class ExpectedDsc:
    """The soft Dice of probabilities with the mask that they mean: about the DSC to expect if they are right.

    2 Σ p m / (Σ p + Σ m), over the voxels of all slabs that were added. Networks tend to be too sure of themselves, on
    unlike scans above all, so it is an upper bound rather than a forecast; it ranks scans by how good their masks are.
    Source: soft Dice confidence, Borges et al. 2024, arXiv:2402.10665.
    """

    def __init__(self, num_outputs: int, *, has_background: bool) -> None:
        self.has_background = has_background
        self.overlap, self.probability, self.size = np.zeros((3, num_outputs))

    def add(self, slab: Volume) -> None:
        self.probability += slab.sum(axis=(1, 2, 3), dtype=np.float64)
        if self.has_background:
            for row in slab.swapaxes(0, 1):  # one at a time, for argmax makes a copy
                likeliest = row.argmax(axis=0)
                highest = np.take_along_axis(row, likeliest[None], axis=0).ravel()
                self.overlap += np.bincount(likeliest.ravel(), weights=highest, minlength=len(row))
                self.size += np.bincount(likeliest.ravel(), minlength=len(row))
        else:
            for output, probabilities in enumerate(slab):
                inside = probabilities[probabilities > 0.5]
                self.overlap[output] += inside.sum(dtype=np.float64)
                self.size[output] += inside.size

    @property
    def per_output(self) -> list[float | None]:
        """None for an output that the mask does not have."""
        return [
            float(2 * overlap / (probability + size)) if size else None
            for overlap, probability, size in zip(self.overlap, self.probability, self.size, strict=True)
        ]


def entropy(slab: Volume, *, has_background: bool) -> Volume:
    """(L, d, H, W) to (d, H, W), 0 for sure to 1 for all labels alike; of regions, which may overlap, the mean of each.

    Source: Shannon's, divided by the logarithm of the number of labels.
    """
    total = np.zeros(slab.shape[1:], np.float32)
    for probabilities in slab:
        total += entr(probabilities) if has_background else entr(probabilities) + entr(1 - probabilities)
    return total / np.float32(math.log(len(slab)) if has_background else len(slab) * math.log(2))


def disagreement(members: Sequence[Volume]) -> Volume:
    """(L, d, H, W) of each network to (d, H, W): their standard deviation, mean over the outputs; 0 for a single one."""
    total = np.zeros(members[0].shape[1:], np.float32)
    for of_output in zip(*members, strict=True):
        total += np.std(of_output, axis=0)
    return total / np.float32(len(members[0]))


def mean_of(members: Sequence[Volume]) -> Volume:
    """Of one it is the same array."""
    if len(members) == 1:
        return members[0]
    total = members[0].copy()
    for member in members[1:]:
        total += member
    total /= len(members)
    return total


class Watch:
    """Passes on the mean of what some networks predict, slab by slab, and keeps what it tells about their certainty."""

    def __init__(self, plan: Plan, *, has_maps: bool) -> None:
        self.expected = ExpectedDsc(plan.num_outputs, has_background=plan.has_background)
        self.plan, self.has_maps = plan, has_maps
        self.maps: dict[str, list[NDArray[np.float32]]] = {"entropy": [], "disagreement": []}

    def pass_on(self, slabs: Iterable[Sequence[Volume]]) -> Iterator[Volume]:
        """`slabs`: of each network, or of all of them one mean."""
        for members in slabs:
            mean = mean_of(members)
            is_segmentation = self.plan.task == "segmentation"
            if is_segmentation:
                self.expected.add(mean)
            if self.has_maps and is_segmentation:
                self.maps["entropy"].append(entropy(mean, has_background=self.plan.has_background)[None])
            if self.has_maps and len(members) > 1:
                self.maps["disagreement"].append(disagreement(members)[None])
            yield mean
