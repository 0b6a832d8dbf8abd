"""The results of a run to one self-contained page, `report.html`: what was trained on what, how good it is, and why.

Chooses which cases to show and puts numbers into tables; measures nothing, and leaves drawing to `figures` and the
words and looks of the page to `report.html.j2`. Imports no torch.
"""

import base64
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline import errors, figures, records
from pipeline.bootstrap import NUM_RESAMPLES
from pipeline.choice import operations_from_json
from pipeline.evaluate import ENSEMBLE, MEAN
from pipeline.images import read_labels_ras, read_ras
from pipeline.metrics import TOLERANCE_SLACK_MM
from pipeline.paths import Results
from pipeline.plan import DIGEST, is_edited
from pipeline.records import Case, Cohort, TrainingFacts
from pipeline.targets import as_painted

TEXT_COLUMNS = {"configuration", "case", "label", "name", "status", "subject"}
SIZES = {"spacing_mm", "median_shape", "patch_size", "strides", "kernels"}  # of a plan: one number per axis
PACKAGES = ("torch", "monai", "numpy", "scipy", "nibabel", "snakemake")
# Columns of the summary in which the best configuration is set in bold: which end is best, as the page prints it.
COMPARED = {"dsc": (max, ".3f"), "nsd": (max, ".3f"), "hd95_worst_mm": (min, ".2f")}
COMPARED_VALUES = {"mae": (min, ".4g"), "rmse": (min, ".4g")}
LARGEST_PLOT = 60  # boxes; beyond, only the configuration of the headline is drawn
LARGEST_CAPTION = 8  # labels under the picture of a case
LARGEST_TABLE = 2000  # rows of single cases and labels; metrics.tsv has all

Row = dict[str, Any]  # one line of a table of the page


@dataclass(frozen=True)
class Shown:
    """A case to look at, and why: it is among the best, middle or worst by mean DSC over its labels."""

    rank: str
    case: str
    dsc: float


def main(results: str, settings: str, config: str = "{}") -> None:
    """`settings`: `{"title": "", "cases": 3}`; `config`: the whole resolved configuration, for the record."""
    files, wanted = Results(results), json.loads(settings)
    cohort, cases = records.read_cohort(files.cohort), records.read_cases(files.checked_cases)
    metrics, summary = read_frame(files.metrics), read_frame(files.summary)
    problems = records.read_table(files.problems)
    headline = headline_configuration(summary)
    trained = [name for name in dict.fromkeys(metrics["configuration"]) if name != ENSEMBLE]
    folds = sorted(int(fold) for fold in metrics["fold"].unique())
    progress = read_progress(files, trained, folds)
    if cohort.is_regression:
        of_task = page_of_values(metrics, summary, headline)
    else:
        of_task = page_of_labels(files, cohort, cases, metrics, summary, headline, wanted["cases"])
    page = {
        **of_task,
        "title": wanted["title"] or cohort.name,
        "cohort": cohort,
        "trained": trained,
        "folds": folds,
        "headline": headline,
        "counts": count_cases(cases, problems, metrics),
        "num_resamples": NUM_RESAMPLES,
        "seen": augmented_pictures(files, trained, folds),
        "curves": as_source(figures.learning_curves(progress), "svg+xml") if progress else None,
        "trainings": training_rows(files, trained, folds),
        "silent": records.SILENT,
        "skips": {name: skip_summary(files, name, folds) for name in trained},
        "num_case_rows": int((metrics["configuration"] == headline).sum()),
        "plans": {name: plan_rows(records.read_json(files.plan(name))) for name in trained},
        "plan_notes": plan_notes(files, trained, json.loads(config)),
        "inference": {name: read_inference(files, name) for name in trained},
        "choice": read_choice(files, cohort) if files.choice.exists() else None,
        "problems": problems,
        "provenance": provenance(),
        "config": yaml.safe_dump(json.loads(config), sort_keys=False, allow_unicode=True),
    }
    with records.written_whole(files.report) as partial:
        partial.write_text(render(page), encoding="utf-8")


def page_of_labels(
    files: Results,
    cohort: Cohort,
    cases: Sequence[Case],
    metrics: pd.DataFrame,
    summary: pd.DataFrame,
    headline: str,
    num_cases: int,
) -> Row:
    """What only the page of a segmentation shows."""
    colours = figures.label_colours([str(target.label) for target in cohort.targets])
    num_boxes = metrics.groupby(["label", "configuration"]).ngroups
    drawn = metrics if num_boxes <= LARGEST_PLOT else metrics[metrics["configuration"] == headline]
    shown = choose_cases(metrics[metrics["configuration"] == headline], num_cases)
    return {
        "means": summary[summary["label"] == MEAN].to_dict("records"),
        "results": result_rows(summary),
        "best_measure": "best mean DSC",
        "colours": colours,
        "tolerance_mm": metrics["tolerance_mm"].iloc[0],
        "slack_mm": TOLERANCE_SLACK_MM,
        "distribution": as_source(figures.dsc_distribution(drawn, colours), "svg+xml"),
        "is_all_drawn": len(drawn) == len(metrics),
        "overlays": [draw_case(one, headline, files, cases, cohort, metrics, colours) for one in shown],
        "case_rows": case_rows(metrics, headline)[:LARGEST_TABLE],
    }


def page_of_values(metrics: pd.DataFrame, summary: pd.DataFrame, headline: str) -> Row:
    """What only the page of a regression shows; `report.regression.html.j2` has its tables."""
    rows = metrics[metrics["configuration"] == headline].sort_values("mae", ascending=False, kind="stable")
    return {
        "means": summary.to_dict("records"),
        "results": result_rows(summary, COMPARED_VALUES),
        "best_measure": "lowest mean absolute error",
        "colours": {},
        "case_rows": rows.to_dict("records")[:LARGEST_TABLE],
    }


def render(page: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template("report.html.j2").render(page)


def number(value: float | None, form: str = ".3f") -> str:
    """`–` for no value (None or NaN), `∞` for an infinite distance."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{value:{form}}".replace("-", "−")


def as_source(content: bytes, kind: str) -> str:
    """The content of an image as the `src` of its tag."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def read_frame(path: Path) -> pd.DataFrame:
    """A table with numbers where they belong; names stay text even if they are called `NA` or `007`."""
    frame = pd.DataFrame(records.read_table(path))
    for column in frame.columns.difference(list(TEXT_COLUMNS)):
        frame[column] = pd.to_numeric(frame[column])  # an empty cell becomes NaN
    return frame


def read_progress(files: Results, configurations: Sequence[str], folds: Sequence[int]) -> figures.Progress:
    """What the trainings wrote down; without those that wrote nothing."""
    paths = {(name, fold): files.progress(name, fold) for name in configurations for fold in folds}
    tables = {key: read_frame(path) for key, path in paths.items() if path.exists()}
    return {key: table for key, table in tables.items() if len(table)}


def augmented_pictures(files: Results, configurations: Sequence[str], folds: Sequence[int]) -> dict[str, str]:
    """What the network of each configuration saw, from the first fold that drew it; without those that drew nothing."""
    pictures: dict[str, str] = {}
    for name in configurations:
        drawn = [path for fold in folds if (path := files.augmented(name, fold)).exists()]
        if drawn:
            pictures[name] = as_source(figures.as_jpeg(drawn[0].read_bytes()), "jpeg")
    return pictures


def training_rows(
    files: Results, configurations: Sequence[str], folds: Sequence[int]
) -> dict[str, dict[int, TrainingFacts]]:
    """By configuration and fold, what each training did with its budget; without those that wrote nothing."""
    paths = {name: {fold: files.training_facts(name, fold) for fold in folds} for name in configurations}
    facts = {
        name: {fold: records.read_facts(path) for fold, path in part.items() if path.exists()}
        for name, part in paths.items()
    }
    return {name: part for name, part in facts.items() if part}


def skip_summary(files: Results, configuration: str, folds: Sequence[int]) -> Row | None:
    """Which skip connections of the folds' networks are dead or silent, and how the others do; None if no fold looked."""
    looked = [fold for fold in folds if files.skips(configuration, fold).exists()]
    if not looked:
        return None
    rows = [{"fold": fold, **row} for fold in looked for row in read_skips(files.skips(configuration, fold))]
    effects = [row["effect"] for row in rows]
    return {
        "num": len(rows),
        "num_folds": len(looked),
        "channels": sum(row["channels"] for row in rows),
        "dead_channels": sum(row["dead_channels"] for row in rows),
        "lowest_effect": min(effects, default=None),
        "highest_effect": max(effects, default=None),
        "others": [row for row in rows if row["verdict"] != "alive"],
    }


def read_skips(path: Path) -> list[Row]:
    numbers = {"channels": int, "dead_channels": int, "mean_abs": float, "effect": float}
    return [{key: numbers.get(key, str)(value) for key, value in row.items()} for row in records.read_table(path)]


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
    """None is refused: `check` stops a run before anything is trained."""
    return {
        "cases": len(cases),
        "subjects": len({one.subject for one in cases}),
        "scored": metrics["case"].nunique(),
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
        window=figures.grey_window(volume, is_ct=cohort.channels[min(cohort.channels)].lower() == "ct"),
        colours={target.painted: colours[str(target.label)] for target in cohort.targets},
    )
    scores = metrics[(metrics["configuration"] == configuration) & (metrics["case"] == case.case)]
    return {
        "shown": shown,
        "image": as_source(image, "jpeg"),
        "fold": case.fold,
        "scores": scores.nsmallest(LARGEST_CAPTION, "dsc").sort_index().to_dict("records"),
        "num_more": max(0, int(scores["dsc"].count()) - LARGEST_CAPTION),
    }


def read_inference(files: Results, configuration: str) -> Row | None:
    """How scans were cut, and what else was tried: how many times as fast as the first, the reference, and its score."""
    path = files.inference(configuration)
    if not path.exists():
        return None
    content = records.read_json(path)
    keys = ("window", "overlap", "mirror")
    tried = [
        {
            **row,
            "speed": content["tried"][0]["seconds"] / row["seconds"],
            "is_chosen": all(row[key] == content[key] for key in keys),
        }
        for row in content["tried"]
    ]
    return {**content, "tried": tried}


def read_choice(files: Results, cohort: Cohort) -> Row:
    """What `ensemble` chose, with its cleaning in words: one sentence for each label that is cleaned."""
    choice = records.read_json(files.choice)
    cleaning = choice["postprocess"]
    for fold, chosen in choice["per_fold"].items():
        chosen["cleaned"] = cleaning_words(cleaning["per_fold"][fold], cohort)
    return {**choice, "cleaned": cleaning_words(cleaning["for_new_scans"], cohort)}


def cleaning_words(accepted: Mapping[str, Mapping[str, Any]], cohort: Cohort) -> list[str]:
    operations = operations_from_json(accepted, [target.label for target in cohort.targets])
    return [
        f"{target.name}: {operations[target.label].words()} (mean DSC {one['gain']:+.3f}, "
        f"{one['better']} cases better, {one['worse']} worse)"
        for target in cohort.targets
        if (one := accepted.get(str(target.label)))
    ]


def plan_notes(files: Results, trained: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    """What the numbers of a plan do not say: that a person wrote them, or that a configuration was not needed."""
    reasons = {name: records.left_out(files.plan(name)) for name in config.get("configurations", {})}
    edited = [f"The plan of {name} was edited by hand." for name in trained if is_edited(files.plan(name))]
    return [*edited, *(f"{name} was left out: {reason}." for name, reason in reasons.items() if reason)]


def plan_rows(plan: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Key, value and reason of every entry that has a value; keys with a reason first."""
    reasons = plan.get("reasons", {})
    shown = (key for key in plan if key not in ("reasons", DIGEST) and plan[key] is not None)
    keys = sorted(shown, key=lambda key: key not in reasons)
    return [(key, plain(plan[key], " × " if key in SIZES else ", "), reasons.get(key, "")) for key in keys]


def plain(value: Any, between: str = ", ") -> str:
    """A value of a plan as a person writes it: `1.5 × 1 × 1`, `32, 64, 128`; None is an axis that stays as it is."""
    if value is None:
        return "as it is"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(part)}" for key, part in value.items())
    if isinstance(value, list):
        is_nested = any(isinstance(part, list | Mapping) for part in value)
        return ("; " if is_nested else between).join(plain(part, between) for part in value)
    return str(value)


def provenance() -> dict[str, str]:
    """What made this page and where, without the name of the machine or its user."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    errors.run(main)
