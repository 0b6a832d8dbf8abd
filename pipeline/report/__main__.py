"""The stage: reads what the others wrote, fills the templates, writes the page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline import disk, errors, figures, records
from pipeline.bootstrap import NUM_RESAMPLES
from pipeline.evaluate import ENSEMBLE
from pipeline.metrics import MIN_IOU, TOLERANCE_SLACK_MM
from pipeline.paths import Results
from pipeline.records import Case, Cohort
from pipeline.report import pictures, plots, scores, stages, viewer
from pipeline.report.cohort import cohort_rows
from pipeline.report.pictures import as_source
from pipeline.report.provenance import provenance, stage_costs
from pipeline.report.scores import Row
from pipeline.summary import MEAN

LARGEST_PLOT = 60  # boxes; beyond, only the configuration of the headline is drawn
LARGEST_TABLE = 2000  # rows of single cases and labels; metrics.tsv has all


def main(results: str, settings: str, config: str = "{}", threads: int = 1) -> None:
    """`settings`: `{"title": "", "cases": 3}`; `config`: the whole resolved configuration, for the record."""
    files, wanted = Results(results), json.loads(settings)
    cohort, cases = records.read_cohort(files.cohort), records.read_cases(files.checked_cases)
    metrics, summary = scores.read_frame(files.metrics), scores.read_frame(files.summary)
    problems = records.read_table(files.problems)
    headline = scores.headline_configuration(summary)
    trained = [name for name in dict.fromkeys(metrics["configuration"]) if name != ENSEMBLE]
    folds = sorted(int(fold) for fold in metrics["fold"].unique())
    trainings = stages.training_rows(files, trained, folds)
    skips = {name: stages.skip_summary(files, name, folds) for name in trained}
    progress = stages.read_progress(files, trained, folds)
    if cohort.is_regression:
        of_task = page_of_values(metrics, summary, headline)
    else:
        of_task = page_of_labels(files, cohort, cases, metrics, summary, headline, wanted["cases"])
    page = {
        **of_task,
        **page_of_viewer(files, cohort, cases, metrics[metrics["configuration"] == headline], headline, threads),
        "of_cohort": page_of_cohort(files, cohort, cases, problems),
        "title": wanted["title"] or cohort.name,
        "cohort": cohort,
        "trained": trained,
        "folds": folds,
        "headline": headline,
        "counts": scores.count_cases(cases, problems, metrics),
        "comparisons": scores.comparison_rows(files.comparison),
        "num_resamples": NUM_RESAMPLES,
        "seen": pictures.augmented_pictures(files, trained, folds),
        "curves": as_source(plots.learning_curves(progress), "svg+xml") if progress else None,
        "trainings": trainings,
        "silent": records.SILENT,
        "skips": skips,
        "num_case_rows": int((metrics["configuration"] == headline).sum()),
        "plans": {name: stages.plan_rows(records.read_json(files.plan(name))) for name in trained},
        "warnings": stages.warnings(trainings, skips),
        "plan_notes": stages.plan_notes(files, trained, json.loads(config)),
        "inference": {name: stages.read_inference(files, name) for name in trained},
        "choice": stages.read_choice(files, cohort) if files.choice.exists() else None,
        "problems": problems,
        "provenance": provenance(files),
        "costs": stage_costs(files, trained, folds),
        "settings": json.loads(config),
        "config": yaml.safe_dump(json.loads(config), sort_keys=False, allow_unicode=True),
    }
    disk.write_text(files.report, render(page))


def page_of_cohort(files: Results, cohort: Cohort, cases: Sequence[Case], problems: Sequence[Mapping[str, str]]) -> Row:
    fingerprint = records.read_json(files.fingerprint)
    volumes = [row["volumes_ml"] for row in fingerprint["cases"] if "volumes_ml" in row]
    colours = figures.label_colours([target.name for target in cohort.targets])
    has_any = any(volume for own in volumes for volume in own.values())
    drawn = as_source(plots.label_volumes(volumes, colours), "svg+xml") if has_any else None
    num_test = len(records.read_cases(files.test_cases)) if files.test_cases.exists() else 0
    return {**cohort_rows(fingerprint, cases, cohort, problems), "figure": drawn, "num_test": num_test}


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
    colours = colours_of_targets(cohort)
    num_boxes = metrics.groupby(["label", "configuration"]).ngroups
    drawn = metrics if num_boxes <= LARGEST_PLOT else metrics[metrics["configuration"] == headline]
    of_headline = metrics[metrics["configuration"] == headline]
    shown = scores.choose_cases(of_headline, num_cases)
    volumes = scores.volume_limits(of_headline)
    limits = {row["label"]: (row["bias_ml"], row["low_ml"], row["high_ml"]) for row in volumes}
    return {
        "means": summary[summary["label"] == MEAN].to_dict("records"),
        "results": scores.result_rows(summary),
        "has_lesions": "lesion_tp" in summary,
        "has_voxel_edges": "nsd_voxel" in summary,
        "min_iou": MIN_IOU,
        "best_measure": "best mean DSC",
        "colours": colours,
        "tolerance_mm": metrics["tolerance_mm"].iloc[0],
        "slack_mm": TOLERANCE_SLACK_MM,
        "distribution": as_source(plots.dsc_distribution(drawn, colours), "svg+xml"),
        "volumes": volumes,
        "panels": plots.LARGEST_PANELS,
        "agreement": as_source(plots.volume_agreement(of_headline, limits, colours), "svg+xml") if volumes else None,
        "is_all_drawn": len(drawn) == len(metrics),
        "overlays": [pictures.draw_case(one, headline, files, cases, cohort, metrics, colours) for one in shown],
        "case_rows": scores.case_rows(metrics, headline)[:LARGEST_TABLE],
    }


def page_of_values(metrics: pd.DataFrame, summary: pd.DataFrame, headline: str) -> Row:
    """What only the page of a regression shows; `results_of_values.html.j2` has its tables."""
    rows = metrics[metrics["configuration"] == headline].sort_values("mae", ascending=False, kind="stable")
    return {
        "means": summary.to_dict("records"),
        "results": scores.result_rows(summary, scores.COMPARED_VALUES),
        "best_measure": "lowest mean absolute error",
        "colours": {},
        "case_rows": rows.to_dict("records")[:LARGEST_TABLE],
    }


def colours_of_targets(cohort: Cohort) -> dict[str, str]:
    return figures.label_colours([str(target.label) for target in cohort.targets])


def page_of_viewer(
    files: Results, cohort: Cohort, cases: Sequence[Case], of_headline: pd.DataFrame, headline: str, threads: int
) -> Row:
    """The viewer, what it has to know of the run, and the cases themselves if they are few enough."""
    colours = colours_of_targets(cohort)
    scored = [case for case in cases if case.case in set(of_headline["case"])]
    inside = viewer.store(files, scored, cohort, headline, threads=threads)
    tables = {"values": figures.colour_table(figures.VALUES), "difference": figures.colour_table(figures.DIFFERENCE)}
    return {
        "viewer": {
            "colours": {target.painted: colours[str(target.label)] for target in cohort.targets},
            "tables": tables if cohort.is_regression else None,
            "channels": [name for _, name in sorted(cohort.channels.items())],
            "cases": viewer.case_list(of_headline),
            "folder": None if inside else files.report_cases.name,
            "end": files.report_cases_end.name,
        },
        "inside": inside,
        "niivue": viewer.niivue(),
        "licences": viewer.licences(),
    }


def render(page: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = scores.number
    return environment.get_template("page.html.j2").render(page)


if __name__ == "__main__":
    errors.run(main)
