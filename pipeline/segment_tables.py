"""What became of the new scans to tables, and to measures where labels lie beside them; scans without a mask are named.

`segment` writes one record per scan, in one job or several; here they come together. Imports no torch.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from pipeline import errors, evaluate, records
from pipeline.check.problem import COLUMNS as PROBLEM_COLUMNS
from pipeline.check.problem import Problem, any_refused
from pipeline.errors import CohortError
from pipeline.paths import Results
from pipeline.records import Case
from pipeline.typed import from_json

CASE_COLUMNS = ("case", "status", "expected_dsc", "seconds", "flags", "reason")
LABEL_COLUMNS = ("case", "label", "name", "volume_ml", "expected_dsc")
PRINTED = 50


@dataclass(frozen=True)
class FoundLabel:
    """One label or region of a mask; no `expected_dsc` where it is not in the mask."""

    label: str
    name: str
    volume_ml: float
    expected_dsc: float | None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one scan. While it is `made_of` the same scan, models and settings, its mask stays."""

    status: Literal["done", "failed"]
    reason: str = ""
    seconds: float = 0.0
    made_of: dict[str, str] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    flags: tuple[str, ...] = ()
    labels: tuple[FoundLabel, ...] = ()

    @property
    def expected_dsc(self) -> float | None:
        """Mean over the labels in the mask; None for none."""
        found = [label.expected_dsc for label in self.labels if label.expected_dsc is not None]
        return float(np.mean(found)) if found else None

    @property
    def has_sound_label(self) -> bool:
        """Whether its label, if there is one, may be scored: of a scan with a mask only the label can be refused."""
        return self.status == "done" and not any_refused(self.problems)


def write_outcome(path: Path, outcome: Outcome) -> None:
    records.write_json(path, asdict(outcome))


def read_outcome(path: Path) -> Outcome | None:
    """None if there is no record, or one that is no use."""
    try:
        outcome: Outcome = from_json(Outcome, json.loads(path.read_text()))
    except (FileNotFoundError, ValueError):
        return None
    return outcome


def main(results: str, shards: int, settings: str) -> None:
    """settings is JSON: what `evaluate` is asked to measure."""
    files = Results(results)
    cases = [case for shard in range(shards) for case in records.read_cases(files.segment_shard(shard))]
    outcomes = {case: outcome_of(case, files) for case in sorted(cases, key=lambda case: case.case)}
    write_tables(outcomes, files)
    score(outcomes, files, settings)
    show(outcomes, files)
    if failed := [case.case for case, outcome in outcomes.items() if outcome.status == "failed"]:
        raise CohortError(
            f"segment: {len(failed)} of {len(cases)} scans have no mask: {', '.join(failed)}. The reasons stand above and in "
            f"{files.segment_cases}; correct these scans and run again, which leaves the other masks as they are."
        )


def outcome_of(case: Case, files: Results) -> Outcome:
    """
    Raises:
        CohortError: removed since.
    """
    outcome = read_outcome(files.segment_record(case.case))
    if outcome is None:
        raise CohortError(f"{files.segment_record(case.case)}: missing or damaged. Run `snakemake segment` again.")
    if outcome.status == "done" and case.label and not outcome.has_sound_label:
        return replace(outcome, flags=("not scored, its label is refused", *outcome.flags))
    return outcome


def write_tables(outcomes: dict[Case, Outcome], files: Results) -> None:
    rows = [case_row(case, outcome) for case, outcome in outcomes.items()]
    records.write_table(files.segment_cases, CASE_COLUMNS, rows)
    of_labels: list[dict[str, Any]] = [
        {"case": case.case, **asdict(label)} for case, outcome in outcomes.items() for label in outcome.labels
    ]
    records.write_table(files.segment_labels, LABEL_COLUMNS, map(records.cells, of_labels))
    problems = [asdict(problem) for outcome in outcomes.values() for problem in outcome.problems]
    records.write_table(files.segment_problems, PROBLEM_COLUMNS, problems)


def case_row(case: Case, outcome: Outcome) -> dict[str, object]:
    return {
        "case": case.case,
        "status": outcome.status,
        "expected_dsc": None if outcome.expected_dsc is None else f"{outcome.expected_dsc:.3f}",
        "seconds": f"{outcome.seconds:.1f}",
        "flags": "; ".join(outcome.flags),
        "reason": outcome.reason,
    }


def score(outcomes: dict[Case, Outcome], files: Results, settings: str) -> None:
    """Measures of the masks with labels; without any, the tables of an earlier run go."""
    metrics, summary = files.segment / "metrics.tsv", files.segment / "summary.tsv"
    labelled = [case for case, outcome in outcomes.items() if case.label and outcome.has_sound_label]
    if not labelled:
        metrics.unlink(missing_ok=True)
        summary.unlink(missing_ok=True)
        return
    cohort = records.read_cohort(files.cohort)
    wanted = evaluate.read_wanted(settings, cohort)
    scores: evaluate.Scores = []
    for case in tqdm(labelled, desc="score", mininterval=5):
        masks = {"segment": files.segmented(case.case)}
        scores += evaluate.score_case(case, masks, cohort=cohort, wanted=wanted)
    evaluate.write_tables(metrics, summary, scores)
    print(f"{len(labelled)} masks scored against their labels in {metrics}")


def show(outcomes: dict[Case, Outcome], files: Results) -> None:
    """The worst first: without a mask, flagged, and the others."""
    worst_first: Sequence[tuple[Case, Outcome]] = sorted(
        outcomes.items(), key=lambda pair: (pair[1].status == "done", not pair[1].flags)
    )
    columns = CASE_COLUMNS[:4]
    lines = records.aligned(columns, [case_row(*pair) for pair in worst_first[:PRINTED]])
    notes = ["", *("; ".join(filter(None, (one.reason, *one.flags))) for _, one in worst_first[:PRINTED])]
    width = max(map(len, lines))
    print("\n".join(f"{line.ljust(width)}  {note}".rstrip() for line, note in zip(lines, notes, strict=True)))
    if len(worst_first) > PRINTED:
        print(f"... and {len(worst_first) - PRINTED} more in {files.segment_cases}")
    done = [outcome for outcome in outcomes.values() if outcome.status == "done"]
    flagged = sum(bool(outcome.flags) for outcome in done)
    print(f"{len(done)} masks in {files.segment}, {flagged} of them flagged; see {files.segment_cases}")


if __name__ == "__main__":
    errors.run(main)
