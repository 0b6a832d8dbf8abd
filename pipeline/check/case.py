"""All files of one case: their problems, what was seen in them, and the manifest's rows of those that were not refused."""

import hashlib
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline import records
from pipeline.check.header import HEADER_RULES, Header, compare, grid_as_read, parse_header
from pipeline.check.problem import Asked, Problem, any_refused, first_problems, not_nifti, refuse
from pipeline.check.voxels import VOXEL_RULES, Voxels, read_start, read_voxels, wrong_kind
from pipeline.images import UNREADABLE, Grid
from pipeline.records import Case

LABEL = "label"
LABEL_MISSING = "label-missing"
MANIFEST_OF_FILE = ["file", "sha256", "num_bytes", "shape", "spacing_mm", "orientation", "header_sha256"]


@dataclass(frozen=True)
class FileReport:
    """`header` and `grid` are known when the header is sound, `voxels` when all of the file is."""

    problems: list[Problem]
    header: Header | None = None
    grid: Grid | None = None
    voxels: Voxels | None = None


@dataclass(frozen=True)
class CaseReport:
    """`voxels` and `grids` by role (`image_0`, ..., `label`), of the files that are not refused, as are the manifest's `rows`."""

    problems: list[Problem]
    rows: list[dict[str, object]]
    voxels: Mapping[str, Voxels] = field(default_factory=dict)
    grids: Mapping[str, Grid] = field(default_factory=dict)

    @property
    def is_refused(self) -> bool:
        return any_refused(self.problems)

    @property
    def values(self) -> Set[int] | None:
        """Of the label map, None when it is refused or not there."""
        return frozenset(self.voxels[LABEL].counts) if LABEL in self.voxels else None


def check_case(case: Case, asked: Asked) -> CaseReport:
    """Headers first, then whether the grids agree, then the voxels of the files that nothing is refused of by then.

    Args:
        asked: of the label map; images may hold any value.
    """
    files = {f"image_{index}": path for index, path in enumerate(case.channels)}
    if case.label is not None:
        files[LABEL] = case.label
    asked_of = {role: asked if role == LABEL else replace(asked, declared=None) for role in files}
    headers = {role: check_header(path, asked_of[role]) for role, path in files.items()}
    image = headers["image_0"].grid
    reports = {
        role: check_voxels(files[role], with_grid_compared(report, image), asked_of[role])
        for role, report in headers.items()
    }
    problems = [
        replace(problem, case=case.case, file=str(files[role]))
        for role, report in reports.items()
        for problem in report.problems
    ]
    if case.label is None:
        missing = refuse(LABEL_MISSING, "no label file", "one per training case", "Add it or drop the case.")
        problems.append(replace(missing, case=case.case))
    sound = {role: report for role, report in reports.items() if report.voxels}
    return CaseReport(
        problems,
        rows=[{"case": case.case, "role": role, **row_of(files[role], report)} for role, report in sound.items()],
        voxels={role: report.voxels for role, report in sound.items() if report.voxels},
        grids={role: report.grid for role, report in sound.items() if report.grid},
    )


def with_grid_compared(report: FileReport, image: Grid | None) -> FileReport:
    """A label map or a further channel against the first channel."""
    if report.grid is None or image is None:
        return report
    problem = compare("grid-differs", report.grid, image, "the grid of image_0")
    if problem and problem.severity == "refuse":
        problem = replace(problem, do="Resample it onto the grid of image_0 or drop the case.")
    return replace(report, problems=[*report.problems, *filter(None, [problem])])


def check_file(path: Path, asked: Asked) -> FileReport:
    """Cheap rules first, up to the first refusal."""
    return check_voxels(path, check_header(path, asked), asked)


def check_header(path: Path, asked: Asked) -> FileReport:
    try:
        if problem := wrong_kind(path):
            return FileReport([problem])
        header = parse_header(read_start(path))
        if header is None:
            return FileReport([not_nifti("no NIfTI header")])
        problems = first_problems(rule(header, asked) for rule in HEADER_RULES)
        if any_refused(problems):
            return FileReport(problems)
        return FileReport(problems, header, grid_as_read(header, asked))
    except UNREADABLE as error:
        return FileReport([unreadable(error)])


def check_voxels(path: Path, report: FileReport, asked: Asked) -> FileReport:
    """Reads to the file's end unless its header is refused."""
    if report.header is None or any_refused(report.problems):
        return report
    try:
        voxels = read_voxels(path, report.header, asked)
        found = first_problems(rule(voxels, report.header, asked) for rule in VOXEL_RULES)
    except UNREADABLE as error:
        return replace(report, problems=[*report.problems, unreadable(error)])
    return replace(report, problems=[*report.problems, *found], voxels=None if any_refused(found) else voxels)


def unreadable(error: BaseException) -> Problem:
    found = " ".join(str(error).split()) or type(error).__name__
    return refuse("unreadable", found, "a file that can be read to its end")


def row_of(path: Path, report: FileReport) -> dict[str, object]:
    """Of a sound file, for the manifest."""
    assert report.header is not None, path
    assert report.grid is not None, path
    values = (
        path,
        records.sha256(path),
        path.stat().st_size,
        " ".join(map(str, report.grid.shape)),
        " ".join(f"{size:.6g}" for size in report.grid.spacing_mm),
        report.grid.orientation,
        hashlib.sha256(report.header.binaryblock).hexdigest(),
    )
    return dict(zip(MANIFEST_OF_FILE, values, strict=True))
