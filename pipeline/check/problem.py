"""What a rule finds wrong, and how the rules of one file are asked. Knows no rule."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
