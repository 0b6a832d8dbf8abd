"""Cases in processes: their order, their errors, and what happens when the system kills one."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from pipeline.errors import CohortError
from pipeline.processes import map_cases
from pipeline.records import Case

CASES = [Case(name, name, 0, None, (Path("a.nii"),)) for name in "abcdef"]


def numbered(case: Case, number: int) -> str:
    return f"{case.case}{number}"


def test_results_come_in_the_order_of_the_cases_and_of_none_there_is_none() -> None:
    assert map_cases(numbered, CASES, range(6), processes=2, desc="x") == ["a0", "b1", "c2", "d3", "e4", "f5"]
    assert map_cases(numbered, [], [], processes=2, desc="x") == []


def fail(case: Case) -> None:
    if case.case == "c":
        raise CohortError(case.case)


def test_an_error_of_a_case_is_raised() -> None:
    with pytest.raises(CohortError, match=r"^c$"):
        map_cases(fail, CASES, processes=2, desc="x")


def die(case: Case, folder: Path, times: int) -> str:
    """Of case c the first so many times, as if the system had killed it."""
    with (folder / case.case).open("a") as handle:
        handle.write(".")
    if case.case == "c" and len((folder / case.case).read_text()) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return case.case


def test_a_case_whose_process_is_killed_goes_through_the_second_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = partial(die, folder=tmp_path, times=1)
    assert map_cases(work, CASES, processes=2, desc="x") == list("abcdef")
    assert "c: lost when a process was killed, once more" in capsys.readouterr().out


def test_55_worker_sigkill(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"^c: its process was killed twice, .* Free memory"):
        map_cases(partial(die, folder=tmp_path, times=2), CASES, processes=2, desc="x")
    assert len((tmp_path / "c").read_text()) == 2
