"""Tables of scores to what is done to which scans: the combination of configurations, then the cleaning of each label.

Whoever calls decides which cases have a say; `decide` lets the cases of a fold have none in what is done to them, and says
how much better the result would have looked if they had. Knows numbers only, neither files nor masks. Imports no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.postprocess import NOTHING, SIZES_MM3, Operation, Operations, Scores

# An operation is accepted where it is worth something and not one lucky case's doing: with few cases a mean is moved by one.
SMALLEST_GAIN = 0.001  # of the mean DSC of the label
FEWEST_BETTER = 2  # cases; and at least so many times as many better as worse
# How large a component may be asked to be: as the components of the references at these quantiles, rounded down. The
# smallest may be a slip of the pen of one voxel, hence the others.
QUANTILES = (0.0, 0.05, 0.25)

Combination = tuple[str, ...]  # names of configurations whose probabilities are averaged


@dataclass(frozen=True)
class CaseScores:
    """One case: `values` (combinations, targets, options), and of each target the volumes of the reference's components."""

    fold: int
    values: Scores
    reference_mm3: tuple[NDArray[np.floating], ...]


@dataclass(frozen=True)
class Accepted:
    """An operation, and how the cases that chose it came out with it."""

    operation: Operation
    gain: float
    num_better: int
    num_worse: int


@dataclass(frozen=True)
class Choice:
    """A combination, and for each target the operation that helped, if one did."""

    combination: Combination
    accepted: tuple[Accepted | None, ...]

    @property
    def operations(self) -> tuple[Operation, ...]:
        return tuple(one.operation if one else NOTHING for one in self.accepted)

    def by_label(self, labels: Sequence[int | str]) -> Operations:
        return {label: one.operation for label, one in zip(labels, self.accepted, strict=True) if one}


@dataclass(frozen=True)
class Offer:
    """What can be chosen from, in the order of the tables; of equals the first is taken."""

    combinations: Sequence[Combination]
    options: Sequence[Operation]
    labels: Sequence[int | str]  # of the targets


def decide(scores: Sequence[CaseScores], folds: Sequence[int], offer: Offer) -> tuple[dict[int, Choice], Choice]:
    """For each fold what does best on the cases of all others, and for new scans on all cases."""
    per_fold = {fold: choose([one for one in scores if one.fold != fold], offer) for fold in folds}
    return per_fold, choose(scores, offer)


def choose(scores: Sequence[CaseScores], offer: Offer) -> Choice:
    """The combination of the highest mean score, then the operations that help it; without cases the first, and none."""
    if not scores:
        return Choice(offer.combinations[0], (None,) * len(offer.labels))
    table = np.stack([one.values for one in scores])
    best = int(np.argmax([mean_score(table[:, place, :, 0]) for place in range(len(offer.combinations))]))
    accepted = [
        accept(table[:, best, target], np.concatenate([one.reference_mm3[target] for one in scores]), offer.options)
        for target in range(len(offer.labels))
    ]
    return Choice(offer.combinations[best], tuple(accepted))


def accept(values: Scores, reference_mm3: NDArray[np.floating], options: Sequence[Operation]) -> Accepted | None:
    """The option of the highest mean gain among those that help, None if none does.

    Args:
        values: (cases, options), the first option being to do nothing. Nothing where nothing should be is a success, 1;
            a case with nothing in reference and mask all along has no say.
        reference_mm3: volumes of the components in the references of these cases.
    """
    has_say = values[~np.isnan(values).all(axis=1)]
    if not len(has_say):
        return None
    dsc = np.where(np.isnan(has_say), 1, has_say).astype(np.float64)
    offered = {0.0, *candidate_sizes(reference_mm3)}
    found: list[Accepted] = []
    for option, after in zip(options, dsc.T, strict=True):
        gains = after - dsc[:, 0]
        one = Accepted(option, float(gains.mean()), int((gains > 0).sum()), int((gains < 0).sum()))
        if option.min_mm3 in offered and _helps(one):
            found.append(one)
    return max(found, key=lambda one: one.gain, default=None)


def _helps(one: Accepted) -> bool:
    return one.gain >= SMALLEST_GAIN and one.num_better >= FEWEST_BETTER * max(1, one.num_worse)


def candidate_sizes(reference_mm3: NDArray[np.floating]) -> set[float]:
    """Of the sizes that were scored, the largest that is no larger than each quantile; none without components."""
    if not len(reference_mm3):
        return set()
    wanted = np.quantile(reference_mm3, QUANTILES, method="lower")
    return {max(below) for volume in wanted if (below := [size for size in SIZES_MM3 if size <= volume])}


def mean_score(values: Scores) -> float:
    """(cases, targets) to the mean of the targets' means, as in the summary; what has no value leaves it, of nothing it is 0."""
    has_value = ~np.isnan(values)
    counts = has_value.sum(axis=0)
    sums = np.where(has_value, values, 0).sum(axis=0, dtype=np.float64)
    return float((sums[counts > 0] / counts[counts > 0]).mean()) if counts.any() else 0.0


def mean_scores(scores: Sequence[CaseScores], offer: Offer) -> dict[Combination, float]:
    """Of each combination as it is, over all cases; without cases none."""
    if not scores:
        return {}
    return {
        part: mean_score(np.stack([one.values[place, :, 0] for one in scores]))
        for place, part in enumerate(offer.combinations)
    }


def score_of(scores: Sequence[CaseScores], choices: Mapping[int, Choice], offer: Offer) -> float:
    """The mean score over all cases with what was chosen for the fold of each, every target cleaned alone."""
    return mean_score(np.stack([_under(one, choices[one.fold], offer) for one in scores]))


def _under(one: CaseScores, choice: Choice, offer: Offer) -> Scores:
    """(targets,)"""
    options = [offer.options.index(operation) for operation in choice.operations]
    return one.values[offer.combinations.index(choice.combination), np.arange(len(options)), options]


def accepted_as_json(choice: Choice, labels: Sequence[int | str]) -> dict[str, dict[str, Any]]:
    """By label what was accepted, and how the cases that chose it came out."""
    return {
        str(label): {**asdict(one.operation), "gain": one.gain, "better": one.num_better, "worse": one.num_worse}
        for label, one in zip(labels, choice.accepted, strict=True)
        if one
    }


def operations_from_json(content: Mapping[str, Mapping[str, Any]], labels: Sequence[int | str]) -> Operations:
    names = [field.name for field in fields(Operation)]
    by_text = {str(label): label for label in labels}
    return {by_text[text]: Operation(**{name: one[name] for name in names}) for text, one in content.items()}


def operations_for_new_scans(choice: Mapping[str, Any], labels: Sequence[int | str]) -> Operations:
    """What `choice.json` says of scans outside the cohort; nothing where it is from before masks were cleaned."""
    return operations_from_json(choice.get("postprocess", {}).get("for_new_scans", {}), labels)
