"""The stage `check`: every file of the cohort, then what concerns all cases, then who is in which fold."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from typing import Any

from pipeline import errors, records
from pipeline.check.case import MANIFEST_OF_FILE, CaseReport, check_case
from pipeline.check.cohort import (
    folds_incomplete,
    label_volumes_ml,
    labels_in_no_case,
    same_content,
    subject_in_two_folds,
    with_folds,
)
from pipeline.check.outliers import modality_doubtful, seen_in, unlike_others
from pipeline.check.problem import ALL_CASES, COLUMNS, Asked, Problem
from pipeline.errors import CohortError
from pipeline.paths import Results
from pipeline.processes import map_cases
from pipeline.records import Case, Cohort

MANIFEST = ["case", "role", *MANIFEST_OF_FILE]
PRINTED = 50


def main(results: str, settings: str = "{}", threads: int = 1) -> None:
    """`settings` is JSON: `on_problem`, `folds` and `seed`, and keys of `Asked`; without, it stops at a problem, takes
    nothing for granted and wants folds to be given."""
    files, wanted = Results(results), json.loads(settings)
    is_dropping = wanted.pop("on_problem", "stop") == "drop"
    for earlier in (files.manifest, files.checked_cases, files.test_cases):
        earlier.unlink(missing_ok=True)
    cases, cohort = records.read_cases(files.cases), records.read_cohort(files.cohort)
    num_folds, seed = wanted.pop("folds", 1 + max(case.fold for case in cases)), wanted.pop("seed", 0)
    look = partial(check_case, asked=Asked(declared=cohort.declared, **wanted), copies=files.standard)
    reports = map_cases(look, cases, processes=threads, desc="check")
    problems = judge(cases, reports, cohort, num_folds, is_dropping=is_dropping)
    refused = {problem.case for problem in problems if problem.severity == "refuse"}
    checked = [report.case for report in reports if report.case.case not in refused]
    records.write_table(files.problems, COLUMNS, map(asdict, problems))
    records.write_json(files.problems_json, as_json(cases, problems))
    show(problems)
    if refused and (not is_dropping or not checked or ALL_CASES in refused):
        raise CohortError(refusal(cases, problems, files))
    volumes = {case.case: label_volumes_ml(report, cohort) for case, report in zip(cases, reports, strict=True)}
    training = with_folds(checked, volumes, num_folds, seed)
    rows = [row for report in reports for row in report.rows if row["case"] not in refused]
    records.write_table(files.manifest, MANIFEST, rows)
    records.write_cases(files.checked_cases, training)
    noted = sum(problem.severity != "refuse" for problem in problems)
    dropped = f"{len(refused)} of {len(cases)} dropped" if refused else "none refused"
    print(f"check: {len(checked)} cases, {len(rows)} files, {noted} fixes and warnings, {dropped}")
    if test := [case for case in checked if case.split == "test"]:
        records.write_cases(files.test_cases, test)
        print(f"check: {len(test)} cases of the test split are not trained with; for their masks and measures, once")
        print(f"check: the rest is trained, `snakemake --cores 8 segment --config scans={files.test_cases}`")
    print("check: corrected scans or label files are read again with `snakemake --cores 8 --forcerun check`")


def judge(
    cases: Sequence[Case], reports: Sequence[CaseReport], cohort: Cohort, num_folds: int, *, is_dropping: bool = False
) -> list[Problem]:
    """All problems: those of each case, then those of the cohort; if refused cases are dropped, then of what remains."""
    rows = chain.from_iterable(report.rows for report in reports)
    problems = [
        *chain.from_iterable(report.problems for report in reports),
        *same_content(rows, cases),
        *subject_in_two_folds(cases),
    ]
    refused = {problem.case for problem in problems if problem.severity == "refuse"}
    pairs = [
        (case, report)
        for case, report in zip(cases, reports, strict=True)
        if case.case not in refused or not is_dropping
    ]
    training = [(case, report) for case, report in pairs if case.split == "train"]
    problems += labels_in_no_case([report for _, report in training], cohort)
    problems += folds_incomplete([case for case, _ in training], num_folds)
    seen = [seen_in(case, report, cohort) for case, report in pairs if case.case not in refused]
    return [*problems, *modality_doubtful(seen, cohort), *unlike_others(seen, cohort)]


def refusal(cases: Sequence[Case], problems: Sequence[Problem], files: Results) -> str:
    refused = [problem.case for problem in problems if problem.severity == "refuse"]
    num_cases = len(cases) if ALL_CASES in refused else len(set(refused))
    do = "Do what its last column says"
    if ALL_CASES not in refused and num_cases < len(cases):
        do += ", or go on without these cases with `on_problem: drop`"
    return (
        f"check: {len(refused)} problem{'s' * (len(refused) > 1)} in {num_cases} of {len(cases)} cases "
        f"refused, none expected: see {files.problems}. {do}."
    )


def as_json(cases: Sequence[Case], problems: Sequence[Problem]) -> dict[str, Any]:
    """For programs: the table, and which cases went through."""
    refused = {problem.case for problem in problems if problem.severity == "refuse"}
    ids = [case.case for case in cases]
    return {
        "num_cases": len(ids),
        "accepted": [case for case in ids if not refused & {case, ALL_CASES}],
        "refused": [case for case in ids if refused & {case, ALL_CASES}],
        "problems": [asdict(problem) for problem in problems],
    }


def show(problems: Sequence[Problem]) -> None:
    """Print the problems in aligned columns; nothing for none."""
    if not problems:
        return
    print("\n".join(records.aligned(COLUMNS, map(asdict, problems[:PRINTED]))))
    if len(problems) > PRINTED:
        print(f"... and {len(problems) - PRINTED} more")


if __name__ == "__main__":
    errors.run(main)
