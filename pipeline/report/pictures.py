"""Scans, masks and pictures of trainings to images inside the page. Knows no words of the page."""

import base64
from collections.abc import Mapping, Sequence

import pandas as pd

from pipeline import figures
from pipeline.images import read_labels_ras, read_ras
from pipeline.intensity import is_ct
from pipeline.paths import Results
from pipeline.records import Case, Cohort
from pipeline.report.scores import LARGEST_CAPTION, Row, Shown, lowest
from pipeline.targets import as_painted


def as_source(content: bytes, kind: str) -> str:
    """The content of an image as the `src` of its tag."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def augmented_pictures(files: Results, configurations: Sequence[str], folds: Sequence[int]) -> dict[str, str]:
    """What the network of each configuration saw, from the first fold that drew it; without those that drew nothing."""
    pictures: dict[str, str] = {}
    for name in configurations:
        drawn = [path for fold in folds if (path := files.augmented(name, fold)).exists()]
        if drawn:
            pictures[name] = as_source(figures.as_jpeg(drawn[0].read_bytes()), "jpeg")
    return pictures


def draw_case(
    shown: Shown,
    configuration: str,
    files: Results,
    cases: Sequence[Case],
    cohort: Cohort,
    metrics: pd.DataFrame,
    colours: Mapping[str, str],
) -> Row:
    case = next(one for one in cases if one.case == shown.case)
    assert case.label is not None, case
    volume, grid = read_ras(case.channels[0])
    image = figures.overlay(
        volume,
        as_painted(read_labels_ras(case.label)[0], cohort),
        read_labels_ras(files.mask(configuration, case.case))[0],
        spacing_mm=grid.spacing_mm,
        window=figures.grey_window(volume, is_ct=is_ct(cohort.channels[min(cohort.channels)])),
        colours={target.painted: colours[str(target.label)] for target in cohort.targets},
    )
    scores = metrics[(metrics["configuration"] == configuration) & (metrics["case"] == case.case)]
    return {
        "shown": shown,
        "image": as_source(image, "jpeg"),
        "fold": case.fold,
        "scores": lowest(scores),
        "num_more": max(0, int(scores["dsc"].count()) - LARGEST_CAPTION),
    }
