"""What `check` leaves for the stages after it, of cases that a test made."""

from collections.abc import Sequence

from pipeline import records
from pipeline.check.__main__ import MANIFEST
from pipeline.check.problem import COLUMNS
from pipeline.paths import Results
from pipeline.records import Case


def write_checked(files: Results, cases: Sequence[Case]) -> None:
    """The checked cases, no problems, and the manifest as far as their files are there."""
    records.write_cases(files.checked_cases, cases)
    paths = {case.case: [path for path in (*case.channels, case.label) if path and path.exists()] for case in cases}
    rows = [
        {"case": case, "file": path, "source": None, "sha256": records.sha256(path)}
        for case, own in paths.items()
        for path in own
    ]
    records.write_table(files.manifest, MANIFEST, rows)
    records.write_table(files.problems, COLUMNS, [])
