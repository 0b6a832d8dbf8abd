"""metrics.tsv and summary.tsv to the rows of the page's tables: what is best, what is shown, how a number is printed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import records
from pipeline.evaluate import ENSEMBLE
from pipeline.records import Case
from pipeline.summary import MEAN

TEXT_COLUMNS = {"configuration", "case", "label", "name", "status", "subject", "measure", "first", "second"}
# Columns of the summary in which the best configuration is set in bold: which end is best, as the page prints it.
COMPARED = {"dsc": (max, ".3f"), "nsd": (max, ".3f"), "hd95_worst_mm": (min, ".2f")}
COMPARED_VALUES = {"mae": (min, ".4g"), "rmse": (min, ".4g")}
LARGEST_CAPTION = 8  # labels beside the picture of a case

Row = dict[str, Any]  # one line of a table of the page


@dataclass(frozen=True)
class Shown:
    """A case to look at, and why: it is among the best, middle or worst by mean DSC over its labels."""

    rank: str
    case: str
    dsc: float


def number(value: float | None, form: str = ".3f") -> str:
    """`–` for no value (None or NaN), `∞` for an infinite distance."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{value:{form}}".replace("-", "−")


def read_frame(path: Path) -> pd.DataFrame:
    """A table with numbers where they belong; names stay text even if they are called `NA` or `007`."""
    frame = pd.DataFrame(records.read_table(path))
    for column in frame.columns.difference(list(TEXT_COLUMNS)):
        frame[column] = pd.to_numeric(frame[column])  # an empty cell becomes NaN
    return frame


def headline_configuration(summary: pd.DataFrame) -> str:
    """The one whose cases are shown: the ensemble, else the configuration of the best mean DSC or lowest MAE."""
    if "mae" in summary:
        means = -summary.set_index("configuration")["mae"]
    else:
        means = summary[summary["label"] == MEAN].set_index("configuration")["dsc"].fillna(-1)
    return ENSEMBLE if ENSEMBLE in means.index else str(means.idxmax())


def choose_cases(metrics: pd.DataFrame, cases: int) -> list[Shown]:
    """Up to `cases` of the worst, the middle and the best, worst first, none twice; cases without any value are left out.

    Of fewer than three times as many, a third each; a single case is the worst, of two one is the best.
    """
    mean_dsc = metrics.groupby("case", sort=False)["dsc"].mean().dropna().sort_values(kind="stable")
    num_each = min(cases, max(1, len(mean_dsc) // 3))
    worst, others = mean_dsc.iloc[:num_each], mean_dsc.iloc[num_each:]
    best = others.iloc[-num_each:]
    middle = others.iloc[: len(others) - len(best)]
    start = max(0, (len(middle) - num_each) // 2)
    chosen = {"worst": worst, "median": middle.iloc[start : start + num_each], "best": best}
    return [Shown(rank, str(case), float(dsc)) for rank, part in chosen.items() for case, dsc in part.items()]


def count_cases(cases: Sequence[Case], problems: Sequence[Mapping[str, str]], metrics: pd.DataFrame) -> dict[str, int]:
    """Where every case has gone: `found` is the sum of `scored`, `dropped`, `not_run` and `failed`.

    Args:
        cases: that were not dropped.
    """
    dropped = {one["case"] for one in problems if one["severity"] == "refuse"}
    folds, scored = {int(fold) for fold in metrics["fold"]}, set(metrics["case"])
    in_folds = {one.case for one in cases if one.fold in folds}
    return {
        "found": len(cases) + len(dropped),
        "dropped": len(dropped),
        "not_run": len(cases) - len(in_folds),
        "failed": len(in_folds - scored),
        "scored": len(scored),
        "cases": len(cases),
        "subjects": len({one.subject for one in cases}),
        **{severity: sum(one["severity"] == severity for one in problems) for severity in ("fix", "warn")},
    }


def result_rows(summary: pd.DataFrame, compared: Mapping[str, tuple[Any, str]] = COMPARED) -> list[Row]:
    """The summary label by label, the mean over labels first; `best` names the columns where no configuration is better."""
    rows: list[Row] = []
    labels = dict.fromkeys([MEAN, *summary["label"]])
    for label in labels:
        part = summary[summary["label"] == label]
        for row in part.to_dict("records"):
            best = {
                column
                for column, (end, form) in compared.items()
                if len(part) > 1
                and number(row[column], form) == number(end(part[column].dropna(), default=None), form) != "–"
            }
            rows.append({**{str(key): value for key, value in row.items()}, "best": best})
    return rows


def volume_limits(metrics: pd.DataFrame) -> list[Row]:
    """Per label of one configuration how far volumes differ: the mean, mask minus reference, and where 95 % of cases lie.

    Labels absent from both masks are left out; of fewer than two cases there are no limits (NaN).
    Source: Bland and Altman 1986, limits of agreement: mean ± 1.96 standard deviations of the differences.
    """
    rows: list[Row] = []
    present = metrics[metrics["status"] != "absent_ok"]
    for label, part in present.groupby("label", sort=False):
        difference_ml = part["prediction_ml"] - part["reference_ml"]
        mean_ml, half_ml = difference_ml.mean(), 1.96 * difference_ml.std()  # one case: NaN
        limits = {"bias_ml": mean_ml, "low_ml": mean_ml - half_ml, "high_ml": mean_ml + half_ml}
        rows.append({"label": label, "name": part["name"].iloc[0], "n": len(part), **limits})
    return rows


def comparison_rows(path: Path) -> list[Row]:
    """The pairs of configurations, those of the mean over labels first; none where one configuration is alone."""
    rows = [
        {**{str(key): value for key, value in row.items()}, "best": set()}
        for row in read_frame(path).to_dict("records")
    ]
    return sorted(rows, key=lambda row: row["label"] != MEAN)


def lowest(of_case: pd.DataFrame) -> list[Row]:
    """The labels of one case that are said beside its picture, in their order."""
    rows = of_case.nsmallest(LARGEST_CAPTION, "dsc").sort_index().to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]


def case_rows(metrics: pd.DataFrame, headline: str) -> list[Row]:
    """Every case and label of the headline configuration, lowest DSC first, with the DSC of the others beside it."""
    by_case_and_label = {
        name: part.set_index(["case", "label"])["dsc"].to_dict()
        for name, part in metrics.groupby("configuration", sort=False)
        if name != headline
    }
    rows = metrics[metrics["configuration"] == headline].sort_values("dsc", kind="stable").to_dict("records")
    return [
        {
            **{str(key): value for key, value in row.items()},
            "others": {name: dsc.get((row["case"], row["label"])) for name, dsc in by_case_and_label.items()},
        }
        for row in rows
    ]
