"""The stage `check`, and the rules that need all cases at once."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain

from tqdm.contrib.concurrent import process_map

from pipeline import errors, records
from pipeline.check.case import LABEL, MANIFEST_OF_FILE, CaseReport, check_case
from pipeline.check.problem import ALL_CASES, COLUMNS, Problem, refuse
from pipeline.errors import CohortError
from pipeline.paths import Results
from pipeline.records import Case, Cohort

MANIFEST = ["case", "role", *MANIFEST_OF_FILE]
PRINTED = 50


def main(results: str, threads: int = 1) -> None:
    files = Results(results)
    files.manifest.unlink(missing_ok=True)
    files.checked_cases.unlink(missing_ok=True)
    cases, cohort = records.read_cases(files.cases), records.read_cohort(files.cohort)
    look = partial(check_case, declared=cohort.declared)
    chunk = 1 + len(cases) // (16 * threads)
    reports = process_map(look, cases, max_workers=threads, chunksize=chunk, desc="check", mininterval=1)
    rows = list(chain.from_iterable(report.rows for report in reports))
    problems = [
        *chain.from_iterable(report.problems for report in reports),
        *same_content(rows, cases),
        *labels_in_no_case(reports, cohort),
    ]
    records.write_table(files.problems, COLUMNS, map(asdict, problems))
    show(problems)
    refused = [problem.case for problem in problems if problem.severity == "refuse"]
    if refused:
        num_cases = len(cases) if ALL_CASES in refused else len(set(refused))
        raise CohortError(
            f"check: {len(refused)} problem{'s' * (len(refused) > 1)} in {num_cases} of {len(cases)} cases "
            f"refused, none expected: see {files.problems}. Do what its last column says."
        )
    records.write_table(files.manifest, MANIFEST, rows)
    records.write_cases(files.checked_cases, cases)
    print(f"check: {len(cases)} cases, {len(rows)} files, {len(problems)} fixes and warnings, none refused")
    print("check: corrected scans or label files are read again with `snakemake --cores 8 --forcerun check`")


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
    """Says nothing while some label map is refused, for the label may be in that one."""
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
