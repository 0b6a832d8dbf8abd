"""What plan, train, inference and ensemble wrote down to rows and words of the page; what was not written is left out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import records
from pipeline.choice import operations_from_json
from pipeline.paths import Results
from pipeline.plan import DIGEST, is_edited
from pipeline.records import Cohort, TrainingFacts
from pipeline.report.plots import Progress
from pipeline.report.scores import Row, read_frame

SIZES = {"spacing_mm", "median_shape", "patch_size", "strides", "kernels"}  # of a plan: one number per axis


def read_progress(files: Results, configurations: Sequence[str], folds: Sequence[int]) -> Progress:
    """What the trainings wrote down; without those that wrote nothing."""
    paths = {(name, fold): files.progress(name, fold) for name in configurations for fold in folds}
    tables = {key: read_frame(path) for key, path in paths.items() if path.exists()}
    return {key: table for key, table in tables.items() if len(table)}


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


def warnings(trainings: Mapping[str, Mapping[int, TrainingFacts]], skips: Mapping[str, Row | None]) -> list[str]:
    """What somebody should know before they trust the networks."""
    alarms = [
        f"{name}, fold {fold}: {alarm}."
        for name, part in trainings.items()
        for fold, facts in part.items()
        for alarm in facts.alarms
    ]
    unused = {name: len(one["others"]) for name, one in skips.items() if one and one["others"]}
    return [*alarms, *(f"{name}: {num} skip connections are dead or silent." for name, num in unused.items())]


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
