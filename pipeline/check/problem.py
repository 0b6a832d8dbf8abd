"""What a rule is told, what it finds wrong, and how the rules of one file are asked. Knows no rule."""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pipeline.errors import ImageError

ALL_CASES = "(all)"
REPLACE = "Replace the file or drop the case."
COLUMNS = ["severity", "rule", "case", "file", "found", "expected", "do"]


@dataclass(frozen=True)
class Problem:
    """`severity` is refuse, fix (a later stage does what `do` says) or warn; who asks adds case and file."""

    severity: str
    rule: str
    found: str
    expected: str
    do: str = REPLACE
    case: str = ALL_CASES
    file: str = ""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What one file has to be, and what the user decided about files that can be taken in more than one way.

    `declared`: the values that a label map may hold, None for an image, which may hold any. `num_volumes`: channels that
    lie in the file. `has_3d`: whether a network sees three axes. `scan_gib`: what one file may take while it is prepared.
    """

    declared: Set[int] | None = None
    num_volumes: int = 1
    xform: Literal["refuse", "qform", "sform"] = "refuse"
    nonfinite: Literal["refuse", "fill"] = "refuse"
    allow_unknown_orientation: bool = False
    has_3d: bool = False
    scan_gib: float = 16.0


class Refused(ImageError):
    """One file that cannot be used, in one line; `problem` is the same for the table of `check`."""

    def __init__(self, file: Path, problem: Problem) -> None:
        super().__init__(file, problem)  # as they are, for a worker sends them to its parent
        self.problem = replace(problem, file=str(file))

    def __str__(self) -> str:
        one = self.problem
        return f"{one.file}: {one.found} found, {one.expected} expected. {one.do}"


def refuse(rule: str, found: str, expected: str, do: str = REPLACE) -> Problem:
    return Problem("refuse", rule, found, expected, do)


def first_problems(found: Iterable[Problem | None]) -> list[Problem]:
    """What the rules say, up to the first refusal: rules after it are not asked."""
    problems = []
    for problem in filter(None, found):
        problems.append(problem)
        if problem.severity == "refuse":
            break
    return problems


def any_refused(problems: Sequence[Problem]) -> bool:
    return any(problem.severity == "refuse" for problem in problems)


def not_nifti(found: str, do: str = REPLACE, rule: str = "not-nifti") -> Problem:
    return refuse(rule, found, "NIfTI-1 or NIfTI-2 in one file, .nii or .nii.gz", do)
