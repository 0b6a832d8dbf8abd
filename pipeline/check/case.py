"""All files of one case: their problems, what was seen in them, and the manifest's rows of those that were not refused.

A file that later stages cannot read as it is, or not as the user chose, gets a standard copy that they read in its place.
"""

import hashlib
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline import records
from pipeline.check.header import HEADER_RULES, Header, compare, grid_as_read, is_qform_taken, parse_header
from pipeline.check.problem import Asked, Problem, Refused, any_refused, first_problems, not_nifti, refuse
from pipeline.check.voxels import VOXEL_RULES, Voxels, no_file, read_start, read_voxels, wrong_kind
from pipeline.formats import Choices, kind_of, split_suffix, standardise
from pipeline.images import UNREADABLE, Grid
from pipeline.records import Case

LABEL = "label"
LABEL_MISSING = "label-missing"
MANIFEST_OF_FILE = ["file", "source", "sha256", "num_bytes", "shape", "spacing_mm", "orientation", "header_sha256"]


@dataclass(frozen=True)
class FileReport:
    """Of `path`, the file that is read; `header` and `grid` are known when the header is sound, `voxels` when all of it is."""

    problems: list[Problem]
    path: Path
    header: Header | None = None
    grid: Grid | None = None
    voxels: Voxels | None = None


@dataclass(frozen=True)
class CaseReport:
    """`case` with the files that later stages read.

    `voxels` and `grids` by role (`image_0`, ..., `label`), of the files that are not refused, as are the manifest's `rows`.
    """

    case: Case
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


@dataclass(frozen=True)
class Source:
    """A file of a case as `discover` found it, what it has to be, where its standard copy would lie and what that would hold."""

    path: Path
    asked: Asked
    copy: Path
    channel: int = 0

    def choices(self, *, xform: bool = False, fill: bool = False) -> Choices:
        return Choices(
            channel=self.channel,
            num_channels=self.asked.num_volumes,
            xform="qform" if xform else None,
            fill=fill,
            max_bytes=int(self.asked.scan_gib * 2**28),  # of the four times as much that preparing float32 takes
        )


def sources_of(case: Case, asked: Asked, copies: Callable[[str], Path]) -> dict[str, Source]:
    """By role. One file for all channels stands there once for each of them."""
    num_volumes = len(case.channels) if len(set(case.channels)) == 1 else 1
    of_image = replace(asked, declared=None, num_volumes=num_volumes)
    sources = {
        f"image_{index}": Source(path, of_image, copies(f"{case.case}_{index:04d}"), index * (num_volumes > 1))
        for index, path in enumerate(case.channels)
    }
    if case.label is not None:
        sources[LABEL] = Source(case.label, asked, copies(f"{case.case}_{LABEL}"))
    return sources


def check_case(case: Case, asked: Asked, copies: Callable[[str], Path]) -> CaseReport:
    """Headers first, then whether the grids agree, then the voxels of the files that nothing is refused of by then.

    Args:
        asked: of the label map; images may hold any value.
        copies: where the standard copy of a file lies, by a name such as `case_0000` or `case_label`.
    """
    sources = sources_of(case, asked, copies)
    headers = {role: open_source(source) for role, source in sources.items()}
    image = headers["image_0"].grid
    reports: dict[str, FileReport] = {}
    for role, report in headers.items():
        first = next((name for name in reports if reports[name].path == report.path), None)
        compared = with_grid_compared(report, image)
        # channels of one file are looked at once
        reports[role] = replace(reports[first], problems=[]) if first else check_voxels(compared, sources[role].asked)
    problems = [
        replace(problem, case=case.case, file=str(sources[role].path))
        for role, report in reports.items()
        for problem in report.problems
    ]
    if case.label is None and case.split == "train":
        missing = refuse(LABEL_MISSING, "no label file", "one per training case", "Add it or drop the case.")
        problems.append(replace(missing, case=case.case))
    sound = {role: with_copy(report, sources[role]) for role, report in reports.items() if report.voxels}
    read = {role: sound[role].path if role in sound else source.path for role, source in sources.items()}
    return CaseReport(
        replace(
            case,
            channels=tuple(read[f"image_{index}"] for index in range(len(case.channels))),
            label=read.get(LABEL),
        ),
        problems,
        rows=[
            {"case": case.case, "role": role, **row_of(report, sources[role].path)} for role, report in sound.items()
        ],
        voxels={role: report.voxels for role, report in sound.items() if report.voxels},
        grids={role: report.grid for role, report in sound.items() if report.grid},
    )


def open_source(source: Source) -> FileReport:
    """As far as the header goes; of another format than NIfTI, that of its standard copy, which is made first."""
    is_folder_of_slices = source.path.is_dir() and not split_suffix(source.path.name)[1]
    if kind_of(source.path) in ("nifti", "unknown") or (source.path.is_dir() and not is_folder_of_slices):
        return check_header(source.path, source.asked)
    if not is_folder_of_slices and (problem := no_file(source.path)):
        return FileReport([problem], source.path)
    fill = source.asked.nonfinite == "fill" and source.asked.declared is None
    try:
        problems = standardise(source.path, source.copy, source.choices(fill=fill))
    except Refused as error:
        return FileReport([error.problem], source.path)
    report = check_header(source.copy, replace(source.asked, num_volumes=1))
    return replace(report, problems=[*problems, *report.problems])


def with_copy(report: FileReport, source: Source) -> FileReport:
    """The report of the standard copy of a NIfTI file where later stages need one, otherwise as it is."""
    assert report.header is not None, source.path
    assert report.voxels is not None, source.path
    is_filled = report.voxels.num_nonfinite > 0
    xform = is_qform_taken(report.header, source.asked)
    if report.path != source.path or not (is_filled or xform or source.asked.num_volumes > 1):
        return report
    standardise(source.path, source.copy, source.choices(xform=xform, fill=is_filled))
    copy = check_header(source.copy, replace(source.asked, num_volumes=1))
    return replace(copy, voxels=report.voxels)


def with_grid_compared(report: FileReport, image: Grid | None) -> FileReport:
    """A label map or a further channel against the first channel."""
    if report.grid is None or image is None:
        return report
    problem = compare("grid-differs", report.grid, image, "the grid of image_0")
    if problem and problem.severity == "refuse":
        problem = replace(problem, do="Resample it onto the grid of image_0 or drop the case.")
    return replace(report, problems=[*report.problems, *filter(None, [problem])])


def check_file(path: Path, asked: Asked) -> FileReport:
    """Of a NIfTI file: cheap rules first, up to the first refusal."""
    return check_voxels(check_header(path, asked), asked)


def check_header(path: Path, asked: Asked) -> FileReport:
    try:
        if problem := wrong_kind(path):
            return FileReport([problem], path)
        header = parse_header(read_start(path))
        if header is None:
            return FileReport([not_nifti("no NIfTI header")], path)
        problems = first_problems(rule(header, asked) for rule in HEADER_RULES)
        if any_refused(problems):
            return FileReport(problems, path)
        return FileReport(problems, path, header, grid_as_read(header, asked))
    except UNREADABLE as error:
        return FileReport([unreadable(error)], path)


def check_voxels(report: FileReport, asked: Asked) -> FileReport:
    """Reads to the file's end unless its header is refused."""
    if report.header is None or any_refused(report.problems):
        return report
    try:
        voxels = read_voxels(report.path, report.header, asked)
        found = first_problems(rule(voxels, report.header, asked) for rule in VOXEL_RULES)
    except UNREADABLE as error:
        return replace(report, problems=[*report.problems, unreadable(error)])
    return replace(report, problems=[*report.problems, *found], voxels=None if any_refused(found) else voxels)


def unreadable(error: BaseException) -> Problem:
    found = " ".join(str(error).split()) or type(error).__name__
    return refuse("unreadable", found, "a file that can be read to its end")


def row_of(report: FileReport, source: Path) -> dict[str, object]:
    """Of a sound file, for the manifest; `source` is named where the file is a copy of it."""
    assert report.header is not None, source
    assert report.grid is not None, source
    path = report.path
    values = (
        path,
        source if source != path else None,
        records.sha256(path),
        path.stat().st_size,
        " ".join(map(str, report.grid.shape)),
        " ".join(f"{size:.6g}" for size in report.grid.spacing_mm),
        report.grid.orientation,
        hashlib.sha256(report.header.binaryblock).hexdigest(),
    )
    return dict(zip(MANIFEST_OF_FILE, values, strict=True))
