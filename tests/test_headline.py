"""Promises of what a run says when it ends."""

import os
import re
import time
from pathlib import Path

import pytest

from pipeline import evaluate, records, regression
from pipeline.flow import Run
from pipeline.headline import headline
from pipeline.paths import Results
from pipeline.regression import ErrorScore
from tests.test_evaluate import score


def write_summary(files: Results, names: tuple[str, ...] = ("2d", "ensemble")) -> None:
    scores = [
        score(case, label, dsc, configuration=name)
        for name in names
        for case, dsc in (("a", 0.9), ("b", 0.8), ("c", 0.0))
        for label in (1, 2)
    ]
    evaluate.write_tables(files.metrics, files.summary, [*scores])


def test_every_configuration_has_a_line_with_its_intervals_and_failures(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_summary(Results("tiny"))
    text = headline(Results("tiny"))
    lines = text.splitlines()
    assert re.match(
        r"configuration +DSC \(95 % interval\) +NSD at 2 mm +HD95 in mm, failures counted +missed", lines[1]
    )
    assert re.match(r"2d +0\.567 \(0\.\d{3} to 0\.\d{3}\) +0\.567 \(.*\) +34\.33 \(.*\) +2 +0 +6$", lines[2])
    assert lines[3].startswith("ensemble")
    assert f"report: {(tmp_path / 'results/tiny/report.html').as_uri()}" in lines
    assert "masks: results/tiny/masks/ensemble" in lines
    assert "measures: results/tiny/metrics.tsv, summary.tsv, comparison.tsv" in lines
    assert text.isascii() and "\x1b" not in text, "no colours, in any terminal"


def test_one_subject_has_no_interval(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = Results("tiny")
    evaluate.write_tables(files.metrics, files.summary, [score("a", 1, 0.9), score("a", 2, None)])
    assert re.match(r"2d +0\.900 +0\.900 +1\.00 +0 +0 +1$", headline(files).splitlines()[2])


def test_errors_of_values_have_their_own_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = Results("tiny")
    rows = [ErrorScore("2d", 0, case, "target", "target", "ok", 1.5, 2.5, 0, 0, case) for case in "ab"]
    summary = [records.cells(row | {"n_dropped": 0}) for row in regression.summarise(rows)]
    records.write_table(files.summary, regression.SUMMARY_COLUMNS, summary)
    assert re.match(r"2d +1\.5 \(1\.5 to 1\.5\) +2\.5 \(2\.5 to 2\.5\) +2$", headline(files).splitlines()[2])


def test_a_run_that_made_no_report_says_nothing_of_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    files = Results("tiny")
    write_summary(files)
    run = Run({"name": "tiny", "cohort": "demo"})
    run.show_headline()
    files.report.touch()
    os.utime(files.report, (time.time() - 60,) * 2)
    run.show_headline()
    assert capsys.readouterr().out == ""
    os.utime(files.report)
    run.show_headline()
    assert "report: file://" in capsys.readouterr().out
