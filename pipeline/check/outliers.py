"""What is unlike the other cases in spacing, intensity, label volume and label position, and channels that belie their name.

Warns only: a person has to look. A value is unlike the others where it lies further from their median than `DEVIATIONS`
times their spread, and than a margin below which nobody would look.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.check.case import LABEL, CaseReport
from pipeline.check.cohort import label_volumes_ml
from pipeline.check.problem import Problem
from pipeline.images import Spacing, ras_grid, ras_place
from pipeline.intensity import ForegroundIntensity, is_ct, percentiles
from pipeline.records import Case, Cohort

FEWEST_CASES = 5  # with fewer, nobody knows what is usual
DEVIATIONS = 5.0  # of 208 hippocampi 2 lie outside in position, and 93 to 100 % of those that are mirrored
ROBUST_STD = 1.4826  # of a normal distribution, times the median absolute deviation
SPACING_FACTOR, VOLUME_FACTOR = 1.5, 2.0  # margins
INTENSITY_MARGIN = 0.25  # of the intensities that a scan spans
POSITION_MARGIN = 0.12  # of the scan's box
IMAGE = "image_"  # and the number of the channel: the role of its file
AXES = ("from left to right", "from back to front", "from foot to head")
HU_AIR, HU_WATER = -500.0, 0.0  # CT has values below water; what has values like air is CT

DO = {
    "spacing-outlier": "Is it a scan like the others, and its header right?",
    "intensity-outlier": "Is it of another modality or in another unit?",
    "volume-outlier": "Is the label map complete, and of this scan?",
    "position-outlier": "Is the label map mirrored, or of another scan? Look at it upon its scan.",
}
MODALITY = "modality-doubtful"
RULES = (*DO, MODALITY)


@dataclass(frozen=True)
class Seen:
    """One case: spacing along its RAS axes, intensity of each channel, and of each label its volume and its centre.

    A centre is given along the RAS axes as a fraction of the scan's box.
    """

    case: Case
    spacing_mm: Spacing
    intensity: tuple[ForegroundIntensity, ...]
    volumes_ml: Mapping[int, float]
    centres: Mapping[int, tuple[float, ...]]


@dataclass(frozen=True)
class Quantity:
    """One number of each case that has it, from its file `role`.

    `margin` is what is added to the median, or a factor where ratios count.
    """

    rule: str
    role: str
    name: str
    unit: str
    margin: float
    values: Mapping[str, float]
    is_ratio: bool = False


def seen_in(case: Case, report: CaseReport, cohort: Cohort) -> Seen:
    """Of a case of which nothing is refused."""
    grid = report.grids[f"{IMAGE}0"]
    centres = {}
    if label := report.voxels.get(LABEL):
        for value in cohort.foreground:
            if count := label.counts[value]:
                along = (label.index_sums[value] / count + 0.5) / grid.shape
                centres[value] = ras_place(along, grid.affine)
    channels = [report.voxels[f"{IMAGE}{index}"].intensity for index in range(len(case.channels))]
    return Seen(case, ras_grid(grid).spacing_mm, tuple(channels), label_volumes_ml(report, cohort), centres)


def unlike_others(cases: Sequence[Seen], cohort: Cohort) -> list[Problem]:
    """One problem for each file and kind of quantity, however many of its values lie outside."""
    outside: dict[tuple[str, str, str], list[tuple[str, str]]] = defaultdict(list)
    for quantity in quantities(cases, cohort):
        for case, found, expected in unusual(quantity):
            outside[case, quantity.role, quantity.rule].append((found, expected))
    files = {one.case.case: one.case for one in cases}
    problems = []
    for (case, role, rule), pairs in sorted(outside.items()):
        found, expected = ("; ".join(part) for part in zip(*pairs, strict=True))
        file = files[case].label if role == LABEL else files[case].channels[int(role.removeprefix(IMAGE))]
        problems.append(Problem("warn", rule, found, f"{expected}, as the other cases", DO[rule], case, str(file)))
    return problems


def quantities(cases: Sequence[Seen], cohort: Cohort) -> Iterable[Quantity]:
    for axis, along in enumerate(AXES):
        values = {one.case.case: one.spacing_mm[axis] for one in cases}
        yield Quantity("spacing-outlier", f"{IMAGE}0", f"spacing {along}", "mm", SPACING_FACTOR, values, is_ratio=True)
    for index, channel in cohort.channels.items():
        is_absolute = is_ct(channel)
        described = {one.case.case: percentiles(one.intensity[index], is_absolute=is_absolute) for one in cases}
        span = float(np.median([max(own.values()) - min(own.values()) for own in described.values()] or [0.0]))
        unit = "HU" if is_absolute else "standard deviations from the mean"
        for name in next(iter(described.values()), {}):
            values = {case: own[name] for case, own in described.items()}
            yield Quantity(
                "intensity-outlier", f"{IMAGE}{index}", f"{channel} {name}", unit, INTENSITY_MARGIN * span, values
            )
    for label, name in cohort.foreground.items():
        having = [one for one in cases if label in one.volumes_ml]
        volumes = {one.case.case: one.volumes_ml[label] for one in having}
        yield Quantity("volume-outlier", LABEL, f"volume of {name}", "ml", VOLUME_FACTOR, volumes, is_ratio=True)
        for axis, along in enumerate(AXES):
            places = {one.case.case: 100 * one.centres[label][axis] for one in having}
            yield Quantity("position-outlier", LABEL, f"centre of {name} {along}", "%", 100 * POSITION_MARGIN, places)


def unusual(quantity: Quantity) -> list[tuple[str, str, str]]:
    """Case, what was found and what is usual, of each value that lies outside; none of fewer than `FEWEST_CASES`."""
    if len(quantity.values) < FEWEST_CASES:
        return []
    values = np.array(list(quantity.values.values()))
    margin = math.log(quantity.margin) if quantity.is_ratio else quantity.margin
    scaled = np.log(values) if quantity.is_ratio else values
    median = float(np.median(scaled))
    largest = max(margin, DEVIATIONS * ROBUST_STD * float(np.median(np.abs(scaled - median))))
    low, high = median - largest, median + largest
    is_outside = (scaled < low) | (scaled > high)
    if quantity.is_ratio:
        low, high = math.exp(low), math.exp(high)
    return [
        (case, f"{quantity.name}: {value:.4g} {quantity.unit}", f"{low:.4g} to {high:.4g} {quantity.unit}")
        for case, value, outside in zip(quantity.values, values, is_outside, strict=True)
        if outside
    ]


def modality_doubtful(cases: Sequence[Seen], cohort: Cohort) -> list[Problem]:
    """A channel called CT without Hounsfield units, or another one with them; one problem where that is so in all cases."""
    problems = []
    for index, channel in cohort.channels.items():
        found = {}
        for one in cases:
            low, high = one.intensity[index].percentile_00_5, one.intensity[index].percentile_99_5
            if low >= HU_WATER if is_ct(channel) else low <= HU_AIR:
                found[str(one.case.case)] = f"{channel} from {low:.4g} to {high:.4g}", str(one.case.channels[index])
        if is_ct(channel):
            expected = f"Hounsfield units, which go below {HU_WATER:g}"
            do = "Convert it to Hounsfield units, or give the channel another name under `channels` in config.yaml."
        else:
            expected = f"no values below {HU_AIR:g}, which look like Hounsfield units"
            do = "If it is CT, call the channel CT under `channels` in config.yaml."
        if found and len(found) == len(cases):
            first = next(iter(found.values()))[0]
            problems.append(Problem("warn", MODALITY, f"{first}, and so in all cases", expected, do))
        else:
            problems += [
                Problem("warn", MODALITY, range_found, expected, do, case, file)
                for case, (range_found, file) in found.items()
            ]
    return problems
