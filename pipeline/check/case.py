"""All files of one case: their problems, and the manifest's rows of those that were not refused."""

import hashlib
from collections.abc import Set
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline import records
from pipeline.check.header import HEADER_RULES, compare, grid_of, parse_header
from pipeline.check.problem import Problem, any_refused, first_problems, not_nifti, refuse
from pipeline.check.voxels import VOXEL_RULES, read_start, read_voxels, wrong_kind
from pipeline.images import UNREADABLE, Grid
from pipeline.records import Case

LABEL = "label"
LABEL_MISSING = "label-missing"
MANIFEST_OF_FILE = ["file", "sha256", "num_bytes", "shape", "spacing_mm", "orientation", "header_sha256"]


@dataclass(frozen=True)
class FileReport:
    """`grid` is known when the header is sound, `values` and `row` when nothing is refused."""

    problems: list[Problem]
    grid: Grid | None = None
    values: Set[int] = frozenset()
    row: dict[str, object] | None = None


@dataclass(frozen=True)
class CaseReport:
    """`values` are those of the label map, None when it was refused or is not there."""

    problems: list[Problem]
    values: Set[int] | None
    rows: list[dict[str, object]]


def check_case(case: Case, declared: Set[int] | None) -> CaseReport:
    """`declared`: values that a label map may hold; None where it is an image of values."""
    files = {f"image_{index}": path for index, path in enumerate(case.channels)}
    problems = []
    if case.label is None:
        do = "Add it or drop the case."
        missing = refuse(LABEL_MISSING, "no label file", "one per training case", do)
        problems.append(replace(missing, case=case.case))
    else:
        files[LABEL] = case.label
    reports = {role: check_file(path, declared if role == LABEL else None) for role, path in files.items()}
    image = reports["image_0"].grid
    for role, report in reports.items():
        agreement = None if report.grid is None or image is None else grid_differs(report.grid, image)
        found = filter(None, [*report.problems, agreement])
        problems += [replace(problem, case=case.case, file=str(files[role])) for problem in found]
    label = reports.get(LABEL)
    rows = [{"case": case.case, "role": role, **report.row} for role, report in reports.items() if report.row]
    return CaseReport(problems, label.values if label and label.row else None, rows)


def grid_differs(grid: Grid, image: Grid) -> Problem | None:
    """A label map or a further channel against the first channel."""
    problem = compare("grid-differs", grid, image, "the grid of image_0")
    if problem and problem.severity == "refuse":
        return replace(problem, do="Resample it onto the grid of image_0 or drop the case.")
    return problem


def check_file(path: Path, declared: Set[int] | None) -> FileReport:
    """Cheap rules first, up to the first refusal. `declared`: values of a label map, None for an image."""
    try:
        if problem := wrong_kind(path):
            return FileReport([problem])
        block = read_start(path)
        header = parse_header(block)
        if header is None:
            return FileReport([not_nifti("no NIfTI header")])
        problems = first_problems(rule(header) for rule in HEADER_RULES)
        if any_refused(problems):
            return FileReport(problems)
        grid = grid_of(header)
        voxels = read_voxels(path, header, is_label=declared is not None)
        problems += first_problems(rule(voxels, header, declared) for rule in VOXEL_RULES)
        if any_refused(problems):
            return FileReport(problems, grid)
        values = (
            path,
            records.sha256(path),
            path.stat().st_size,
            " ".join(map(str, grid.shape)),
            " ".join(f"{size:.6g}" for size in grid.spacing_mm),
            grid.orientation,
            hashlib.sha256(block[: header.sizeof_hdr]).hexdigest(),
        )
        row: dict[str, object] = dict(zip(MANIFEST_OF_FILE, values, strict=True))
        return FileReport(problems, grid, frozenset(voxels.counts), row)
    except UNREADABLE as error:
        found = " ".join(str(error).split()) or type(error).__name__
        return FileReport([refuse("unreadable", found, "a file that can be read to its end")])
