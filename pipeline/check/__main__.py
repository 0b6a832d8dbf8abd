"""The stage `check`, and the rules that need all cases at once."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from typing import Any

from tqdm.contrib.concurrent import process_map

from pipeline import errors, records
from pipeline.check.case import LABEL, MANIFEST_OF_FILE, CaseReport, check_case
from pipeline.check.problem import ALL_CASES, COLUMNS, Asked, Problem, refuse
from pipeline.errors import CohortError
from pipeline.paths import Results
from pipeline.records import Case, Cohort

MANIFEST = ["case", "role", *MANIFEST_OF_FILE]
PRINTED = 50


def main(results: str, settings: str = "{}", threads: int = 1) -> None:
    """`settings` is JSON: `on_problem`, and keys of `Asked`; without, it stops at a problem and takes nothing for granted."""
    files, wanted = Results(results), json.loads(settings)
    is_dropping = wanted.pop("on_problem", "stop") == "drop"
    for earlier in (files.manifest, files.checked_cases):
        earlier.unlink(missing_ok=True)
    cases, cohort = records.read_cases(files.cases), records.read_cohort(files.cohort)
    look = partial(check_case, asked=Asked(declared=cohort.declared, **wanted), copies=files.standard)
    chunk = 1 + len(cases) // (16 * threads)
    reports = process_map(look, cases, max_workers=threads, chunksize=chunk, desc="check", mininterval=1)
    problems = judge(cases, reports, cohort, is_dropping=is_dropping)
    refused = {problem.case for problem in problems if problem.severity == "refuse"}
    checked = [report.case for report in reports if report.case.case not in refused]
    records.write_table(files.problems, COLUMNS, map(asdict, problems))
    records.write_json(files.problems_json, as_json(cases, problems))
    show(problems)
    if refused and (not is_dropping or not checked or ALL_CASES in refused):
        raise CohortError(refusal(cases, problems, files))
    rows = [row for report in reports for row in report.rows if row["case"] not in refused]
    records.write_table(files.manifest, MANIFEST, rows)
    records.write_cases(files.checked_cases, checked)
    noted = sum(problem.severity != "refuse" for problem in problems)
    dropped = f"{len(refused)} of {len(cases)} dropped" if refused else "none refused"
    print(f"check: {len(checked)} cases, {len(rows)} files, {noted} fixes and warnings, {dropped}")
    print("check: corrected scans or label files are read again with `snakemake --cores 8 --forcerun check`")


def judge(
    cases: Sequence[Case], reports: Sequence[CaseReport], cohort: Cohort, *, is_dropping: bool = False
) -> list[Problem]:
    """All problems: those of each case, then those of the cohort; if refused cases are dropped, then of what remains."""
    rows = chain.from_iterable(report.rows for report in reports)
    problems = [*chain.from_iterable(report.problems for report in reports), *same_content(rows, cases)]
    refused = {problem.case for problem in problems if problem.severity == "refuse"}
    remaining = [report for case, report in zip(cases, reports, strict=True) if case.case not in refused]
    return [*problems, *labels_in_no_case(remaining if is_dropping else reports, cohort)]


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


def same_content(rows: Iterable[Mapping[str, object]], cases: Iterable[Case]) -> list[Problem]:
    """Two cases with one image: across folds a model would be tested on what it was trained with."""
    fold_of = {case.case: case.fold for case in cases}
    by_content = defaultdict(list)
    for row in rows:
        if row["role"] != LABEL:
            by_content[row["sha256"]].append(row)
    problems = []
    for same in by_content.values():
        first = same[0]
        for row in same[1:]:
            severity = "warn" if fold_of[str(row["case"])] == fold_of[str(first["case"])] else "refuse"
            found = f"the bytes of {first['file']}"
            do = "Drop one of them, or give both cases one `subject` in dataset.json."
            case, file = str(row["case"]), str(row["file"])
            problems.append(Problem(severity, "same-content", found, "an image of its own", do, case, file))
    return problems


def labels_in_no_case(reports: Sequence[CaseReport], cohort: Cohort) -> list[Problem]:
    """Says nothing while some label map is refused, for the label may be in that one, nor where no case is left."""
    if not reports:
        return []
    values: set[int] = set()
    for report in reports:
        if report.values is None:
            return []
        values |= report.values
    wanted = [(value, name, "dataset.json") for value, name in cohort.foreground.items()]
    if cohort.ignore_label is not None:
        wanted.append((cohort.ignore_label, "to be ignored", "`ignore_label` of config.yaml"))
    return [
        refuse(
            "label-in-no-case",
            f"label {value} {name} in no case",
            "in one at least",
            f"Remove it from {place} or correct the label maps.",
        )
        for value, name, place in wanted
        if value not in values
    ]


if __name__ == "__main__":
    errors.run(main)
