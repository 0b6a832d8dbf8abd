"""Promises of the report: one page that needs nothing else, says every number, and trusts no name."""

import base64
import dataclasses
import io
import json
import math
import re
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from pipeline import evaluate, figures, fingerprint, records
from pipeline.paths import Results
from pipeline.plan import digest
from pipeline.records import Case, Cohort, TrainingFacts
from pipeline.report import __main__ as stage
from pipeline.report import pictures, plots, provenance, scores, stages
from tests.checked import write_checked

SHAPE = (9, 11, 13)
AFFINE = np.diag([-0.7, 1.0, 2.5, 1.0])  # not RAS
EVIL = "<script>alert(1)</script>"
PROGRESS = ["step", "elapsed_s", "learning_rate", "train_loss", "validation_loss", "validation_dsc"]
PROBLEMS = ["severity", "rule", "case", "file", "found", "expected", "do"]
CONFIG = {"name": "tiny", "cohort": "scans", "folds": 2, "run_folds": [0, 1]}


def save(path: Path, voxels: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    return path


def make_run(
    configurations: Sequence[str],
    labels: dict[int, str],
    present: Sequence[int],
    num_cases: int = 4,
    channels: Sequence[str] = ("T1",),
) -> Results:
    """A whole run in the working directory; the masks of later cases are worse, those of the first are perfect.

    What is bright in a channel is dark in the next one.
    """
    files = Results("tiny")
    rng = np.random.default_rng(0)
    cases = []
    for index in range(num_cases):
        name = f"case_{index}"
        truth = np.zeros(SHAPE, np.uint8)
        for place, label in enumerate(present):
            truth[1 + 3 * place : 4 + 3 * place, 2:8, 2:9] = label
        scan = rng.normal(size=SHAPE).astype(np.float32) + truth
        images = [
            save(Path(f"scans/{name}_{number:04d}.nii.gz"), scan * (-1) ** number) for number, _ in enumerate(channels)
        ]
        cases.append(Case(name, name, index % 2, save(Path(f"scans/{name}_label.nii.gz"), truth), tuple(images)))
        for configuration in configurations:
            worse = truth.copy()
            worse[:, 2 : 2 + index + (configuration == "2d")] = 0
            save(files.mask(configuration, name), worse)
    write_checked(files, cases)
    records.write_cohort(files.cohort, Cohort("tiny", "table", {0: "background"} | labels, dict(enumerate(channels))))
    fingerprint.main(files.name)
    trained = [name for name in configurations if name != "ensemble"]
    for configuration in trained:
        plan = {"dims": 2, "spacing_mm": [None, 1.0, 1.5], "reasons": {"spacing_mm": f"the median, not {EVIL}"}}
        records.write_json(files.plan(configuration), plan)
        for fold in (0, 1):
            records.write_facts(files.training_facts(configuration, fold), facts())
            records.write_table(files.skips(configuration, fold), records.SKIPS, [skip_row(), skip_row(effect=0.5)])
            files.augmented(configuration, fold).write_bytes(sheet())
            rows = [
                dict(zip(PROGRESS, (step, step * 0.1, 0.003, 1 / (1 + step), None, step / 10), strict=True))
                for step in range(5)
            ]
            records.write_table(files.progress(configuration, fold), PROGRESS, rows)
    if "ensemble" in configurations:
        per_fold = {str(fold): {"chosen": trained, "reason": "best on the other fold"} for fold in (0, 1)}
        largest = {"fill_holes": False, "min_mm3": 0.0, "keep_largest": True, "gain": 0.0123, "better": 5, "worse": 1}
        cleaned = {"reason": "why", "per_fold": {"0": {"1": largest}, "1": {}}, "for_new_scans": {"1": largest}}
        choice = {
            "per_fold": per_fold,
            "for_new_scans": ["3d"],
            "scores": {"2d+3d": 0.8, "2d": 0.7},
            "postprocess": cleaned,
            "estimate": {"chosen": 0.8123, "naive": 0.8234, "optimism": 0.0111},
            "files": {},
        }
        records.write_json(files.choice, choice)
    evaluate.main(files.name, ",".join(configurations), "0,1", json.dumps({"tolerance_mm": 2}))
    return files


def make_run_of_values(configurations: Sequence[str]) -> Results:
    """The same with a single value in place of a label."""
    files = make_run(configurations, {1: "dose"}, [1])
    cohort = dataclasses.replace(records.read_cohort(files.cohort), labels={}, task="regression")
    records.write_cohort(files.cohort, cohort)
    evaluate.main(files.name, ",".join(configurations), "0,1", json.dumps({"tolerance_mm": 2}))
    return files


def facts(**changes: Any) -> TrainingFacts:
    usual = TrainingFacts(
        device=f"CPU {EVIL}",
        form="float32 contiguous_format",
        width=16,
        patch_size=(24, 32),
        batch_size=4,
        steps=500,
        elapsed_s=40.0,
        waited_s=2.8,
        reason=f"why {EVIL}",
        alarms=(),
    )
    return dataclasses.replace(usual, **changes)


def skip_row(**changes: Any) -> dict[str, Any]:
    row = {"skip": "1: 9 x 11", "channels": 16, "dead_channels": 1, "mean_abs": 0.4, "effect": 0.25, "verdict": "alive"}
    return {**row, **changes}


def sheet() -> bytes:
    images, masks = np.zeros((2, 1, 9, 11), np.float32), np.zeros((2, 1, 9, 11), bool)
    return figures.before_and_after(images, images, masks, masks)


def page_of(files: Results, cases: int = 3, title: str = "") -> str:
    stage.main(files.name, json.dumps({"title": title, "cases": cases}), json.dumps(CONFIG))
    return files.report.read_text()


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Tags(HTMLParser):
    """Counts opened and closed elements, and keeps the attributes of images."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in ("img", "input", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()


def test_the_page_needs_nothing_else_and_is_well_formed() -> None:
    page = page_of(make_run(["2d", "3d", "ensemble"], {1: "liver", 4: "spleen"}, [1, 4]))
    assert not re.search(r"(src|href)=\"(?!data:|#)|@import|url\(", page)
    tags = Tags(page)
    assert not tags.open
    assert len(tags.images) == 4 + 2 + 3 and all(image["alt"] for image in tags.images)
    assert len(page) < 3e6


def test_the_page_says_the_mean_and_interval_of_each_configuration() -> None:
    files = make_run(["2d", "3d", "ensemble"], {1: "liver", 4: "spleen"}, [1, 4])
    page = page_of(files, title="My livers")
    assert "<h1>My livers</h1>" in page and "found = 4 scored" in page
    for row in records.read_table(files.summary):
        low, high = float(row["dsc_low"]), float(row["dsc_high"])
        assert f"{float(row['dsc']):.3f}" in page and f"{low:.3f}–{high:.3f}" in page
    assert "best on the other fold" in page and "2d+3d" in page and "folds: 2" in page
    assert f">{np.__version__}<" in page


def test_the_page_and_the_summary_count_the_cases_that_were_dropped() -> None:
    files = make_run(["2d"], {1: "liver"}, [1])
    problem = dict.fromkeys(PROBLEMS, "x") | {"severity": "refuse", "case": "lost"}
    problems = [{**problem, "rule": rule} for rule in ("not-nifti", "label-missing")]
    records.write_table(files.problems, PROBLEMS, problems)
    evaluate.main(files.name, "2d", "0,1", '{"tolerance_mm": 2}')
    assert {row["n_dropped"] for row in records.read_table(files.summary)} == {"1"}
    page = page_of(files)
    assert '<div class="value">5</div>' in page
    assert '+ <span class="alarm">1 dropped by the check</span>' in page


def test_the_page_says_what_was_cleaned_and_how_much_better_the_naive_choice_would_have_looked() -> None:
    files = make_run(["2d", "3d", "ensemble"], {1: EVIL, 4: "spleen"}, [1, 4])
    page = page_of(files)
    sentence = ": largest component kept (mean DSC +0.012, 5 cases better, 1 worse)"
    assert page.count(f"&lt;script&gt;alert(1)&lt;/script&gt;{sentence}") == 2, "fold 0 and new scans"
    assert "Cleaning: why." in page
    assert "the mean DSC is 0.812. Chosen on the same cases it would have been\n0.823, optimistic by 0.011." in page
    choice = records.read_json(files.choice)
    records.write_json(files.choice, {**choice, "estimate": {"chosen": 0.9, "naive": 0.9, "optimism": 0.0}})
    assert "optimistic by 0.000: by luck, the honest choice was no worse." in page_of(files)
    records.write_json(files.choice, {**choice, "estimate": {}})
    assert "optimistic by" not in page_of(files)


def test_the_page_describes_the_cohort_and_shows_cases_unlike_the_others() -> None:
    files = make_run(["2d"], {1: EVIL, 4: "spleen"}, [1, 4])
    problem = dict.fromkeys(PROBLEMS, EVIL) | {"severity": "warn", "rule": "volume-outlier", "case": "case_0"}
    assert "test split" not in page_of(files)
    records.write_cases(files.test_cases, [Case("t", "t", records.NO_FOLD, None, (Path("t.nii"),), "test")])
    records.write_table(files.problems, PROBLEMS, [problem, {**problem, "rule": "trailing-bytes", "case": "case_1"}])
    page = page_of(files)
    section = page[page.index('id="cohort"') : page.index('id="results"')]
    assert EVIL not in section and "&lt;script&gt;alert(1)" in section
    assert "The 4 cases that are trained with" in section and "LAS (4)" in section
    assert "Cases of the test split: 1, " in section
    assert '<div class="value">5</div>' in page and "+ 1 of the test split kept apart" in page
    text = re.sub(r"<[^>]*>", "|", section)
    assert re.search(r"spacing along z\|+mm\|+2\.5\|+2\.5\|+2\.5\|", text)
    assert re.search(r"size along x\|+voxels\|+9\|+9\|+9\|", text)
    assert re.search(r"spleen\|+4\|+0\.2205\|+0\.2205\|+0\.2205\|", text), "126 voxels of 1.75 mm3"
    assert section.count('0.2205 <span class="interval">in 2 cases</span>') == 4, "two labels, two folds"
    assert '<th scope="row" class="name">case_0</th>' in section and "case_1" not in section


def test_names_are_text_and_never_markup() -> None:
    files = make_run(["2d"], {1: EVIL, 2: "a_$b$^$"}, [1, 2])
    problem = dict.fromkeys(PROBLEMS, EVIL) | {"severity": "warn", "case": "case_0"}
    records.write_table(files.problems, PROBLEMS, [problem])
    page = page_of(files, title=EVIL)
    assert EVIL not in page and "&lt;script&gt;alert(1)" in page
    assert page.count("<script>") == 2, "our own: tables and viewer"


def test_one_configuration_without_an_ensemble_is_enough() -> None:
    page = page_of(make_run(["2d"], {1: "liver"}, [1]))
    assert 'id="ensemble"' not in page and "1 configuration (2d)" in page
    assert 'class="num best"' not in page, "nothing to compare with"


def test_a_label_without_any_value_is_a_dash_and_not_a_number() -> None:
    page = page_of(make_run(["2d", "3d"], {1: "liver", 2: "nowhere"}, [1]))
    text = re.sub(r"base64,[^\"]*", "", page)
    assert "nowhere" in text and "–</td>" in text
    assert not re.search(r"\bnan\b|\bNaN\b|>None<|\"None\"", text.split("<script>")[0])


def test_no_value_at_all_still_makes_a_page() -> None:
    page = page_of(make_run(["2d"], {1: "nowhere"}, []))
    assert "No case has a label to compare." in page


def test_a_missed_label_is_reported_with_an_infinite_distance() -> None:
    files = make_run(["2d"], {1: "liver"}, [1])
    save(files.mask("2d", "case_1"), np.zeros(SHAPE, np.uint8))
    evaluate.main(files.name, "2d", "0,1", json.dumps({"tolerance_mm": 2}))
    page = page_of(files)
    assert "∞" in page and "1 missed, 0 false positive in 4 pairs of case and label" in page
    assert "case_1</button></strong>, among the worst: mean DSC 0.000" in page


def test_a_training_without_progress_is_left_out() -> None:
    files = make_run(["2d"], {1: "liver"}, [1])
    for fold in (0, 1):
        records.write_table(files.progress("2d", fold), PROGRESS, [])
        files.training_facts("2d", fold).unlink()
    assert 'id="training"' not in page_of(files)


def test_the_page_says_what_every_training_did_with_its_budget() -> None:
    page = page_of(make_run(["2d", "3d"], {1: "liver"}, [1]))
    cells = "16", "24 × 32", "4", "500", "40", "50", "7%"
    assert re.sub(r"\s*\n", "", page).count("".join(f'<td class="num">{cell}</td>' for cell in cells)) == 4
    assert page.count("float32 contiguous format") == 4, "two configurations, two folds"
    assert page.count("why &lt;script&gt;") == 2, "once per configuration"


def test_every_case_that_was_found_is_accounted_for() -> None:
    files = make_run(["2d"], {1: "liver"}, [1], num_cases=7)
    cases = records.read_cases(files.checked_cases)
    metrics = scores.read_frame(files.metrics)
    metrics = metrics[metrics["case"].isin(["case_0", "case_4"])]
    problems = [{"severity": "refuse", "case": case.case} for case in cases[5:]]
    counts = scores.count_cases(cases[:5], [*problems, *problems, {"severity": "warn", "case": "case_0"}], metrics)
    found = {key: counts[key] for key in ("found", "dropped", "not_run", "failed", "scored", "warn")}
    assert found == {"found": 7, "dropped": 2, "not_run": 2, "failed": 1, "scored": 2, "warn": 1}
    assert counts["found"] == sum(counts[key] for key in ("dropped", "not_run", "failed", "scored"))


def test_limits_of_agreement_are_those_of_bland_and_altman() -> None:
    columns = {"label": "1", "name": "liver", "status": ["ok", "ok", "missed", "absent_ok"]}
    metrics = pd.DataFrame({**columns, "reference_ml": [10.0, 20, 3, 0], "prediction_ml": [11.0, 18, 0, 0]})
    (row,) = scores.volume_limits(metrics)
    difference = np.array([1.0, -2, -3])
    assert row["n"] == 3 and row["bias_ml"] == pytest.approx(difference.mean())
    assert row["high_ml"] - row["low_ml"] == pytest.approx(2 * 1.96 * difference.std(ddof=1))
    (alone,) = scores.volume_limits(metrics[:1])
    assert alone["bias_ml"] == 1 and math.isnan(alone["low_ml"])
    assert b"<svg" in plots.volume_agreement(metrics, {"1": (1.0, math.nan, math.nan)}, {"1": "#ff0000"})


def test_what_each_stage_took_is_said_as_snakemake_measured_it() -> None:
    files = make_run(["2d"], {1: "liver"}, [1])
    assert "What it took" not in page_of(files)
    for fold, seconds, memory_mib in ((0, 90.0, 1024.0), (1, 30.0, 2048.0)):
        cost = {"s": seconds, "h:m:s": "0:01:30", "max_rss": memory_mib, "mean_load": "-"}
        records.write_table(files.cost("train", f"2d/fold_{fold}"), list(cost), [cost])
    short = {"s": 0.6, "h:m:s": "0:00:00", "max_rss": "NA", "mean_load": "NA"}
    records.write_table(files.cost("check"), list(short), [short])
    check = {"stage": "check", "jobs": 1, "minutes": 0.01, "peak_gib": None, "devices": ["CPU"]}
    train = {"stage": "train", "jobs": 2, "minutes": 2.0, "peak_gib": 2.0, "devices": [f"CPU {EVIL}"]}
    assert provenance.stage_costs(files, ["2d"], [0, 1]) == [check, train]
    costs = '<td class="num">2</td><td class="num">2.0</td><td class="num">2.00</td><td class="free">'
    assert f"{costs}CPU &lt;script&gt;" in page_of(files)


def test_devices_are_those_that_the_stages_wrote_down() -> None:
    files = make_run(["2d", "3d"], {1: "liver"}, [1])
    nothing = {"plan": [], "inference": [], "predict": []}
    assert provenance.devices(files, ["2d", "3d"], [0, 1]) == {**nothing, "train": [f"CPU {EVIL}"]}
    records.write_facts(files.training_facts("3d", 1), facts(device="GPU A"))
    records.write_json(files.plan("2d"), {"widths": [{"device": "cuda"}, {"device": "cuda"}]})
    records.write_json(files.inference("3d"), {"device": "GPU B"})
    records.write_file_list(files.predicted("2d", 0), {}, device="GPU B")
    records.write_file_list(files.predicted("2d", 1), {}, device="CPU, 2 threads")
    assert provenance.devices(files, ["2d", "3d"], [0, 1]) == {
        "plan": ["CUDA"],
        "train": [f"CPU {EVIL}", "GPU A"],
        "inference": ["GPU B"],
        "predict": ["CPU, 2 threads", "GPU B"],
    }


def test_the_commit_is_that_of_the_checkout_and_says_if_it_was_changed(tmp_path: Path) -> None:
    assert provenance.git_commit(tmp_path) is None
    for command in ("init -q", "-c user.name=a -c user.email=a@b commit -q --allow-empty -m first"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    commit = provenance.git_commit(tmp_path)
    assert commit and re.fullmatch("[0-9a-f]{40}", commit)
    (tmp_path / "new").touch()
    assert provenance.git_commit(tmp_path) == f"{commit}, with changes that are not committed"


def test_the_model_card_says_what_was_tested_and_leaves_the_rest_to_the_authors() -> None:
    page = re.sub(r"\s+", " ", page_of(make_run(["2d", "3d"], {1: EVIL}, [1])))
    card = page[page.index('id="card"') : page.index('id="provenance"')]
    assert "Masks of &lt;script&gt;alert(1)&lt;/script&gt; from scans like" in card
    assert "4 of the same cases by cross-validation" in card and "No scan of another place was tested." in card
    assert "2-fold cross-validation, seed –" in card and "4 found, 0 dropped, 0 failed, 4 scored." in card


def items_of(text: str) -> list[str]:
    """`1–3, 5b and 7` as single items."""
    items: list[str] = []
    for part in re.split(r", | and ", text):
        low, _, high = part.partition("–")
        items += [part] if not high else [str(number) for number in range(int(low), int(high) + 1)]
    return items


def test_every_item_of_both_checklists_is_answered_by_the_run_or_left_to_the_authors() -> None:
    page = re.sub(r"\s+", " ", page_of(make_run(["2d"], {1: "liver"}, [1])))
    lists = page[page.index("<h3>For the CLAIM") : page.index('id="provenance"')]
    rows = re.findall(r'<tr><td class="num">(.*?)</td><td class="num">(.*?)</td>', lists)
    for column, pattern in enumerate((r"items ([^a-z]*? and 38–42)", r"items (1–4, 5b, .*? and 24–27) are")):
        (others,) = re.findall(pattern, lists)
        answered = {item for row in rows for item in row[column].split(", ")} - {"–"}
        left = items_of(others)
        assert not answered & set(left)
        assert len(left) == len(set(left))
        if column == 0:
            assert {*answered, *left} == {str(number) for number in range(1, 43)}
        else:
            in_parts = {"5": "ab", "12": "abcdefg", "20": "abc", "23": "ab"}
            whole = (str(number) for number in range(1, 28))
            assert {*answered, *left} == {f"{one}{part}" for one in whole for part in in_parts.get(one, [""])}


def test_lesions_and_voxel_edges_are_shown_where_they_were_measured() -> None:
    files = make_run(["2d"], {1: "liver"}, [1])
    page = page_of(files)
    assert "Further measures" in page and "voxel edges" not in page and "<h3>Lesions</h3>" not in page
    evaluate.main(files.name, "2d", "0,1", json.dumps({"tolerance_mm": 2, "lesions": "all", "voxel_edges": True}))
    page = page_of(files)
    assert page.count("voxel edges") == 4 and "<h3>Lesions</h3>" in page and "an IoU of at least 0.5" in page


def test_configurations_are_compared_and_a_single_one_is_not() -> None:
    files = make_run(["2d", "3d"], {1: EVIL}, [1], num_cases=6)
    page = page_of(files)
    assert 'id="comparison"' in page
    row = records.read_table(files.comparison)[0]
    assert f"{float(row['difference']):+.3g}".replace("-", "−") in page[page.index('id="comparison"') :]
    assert 'id="comparison"' not in page_of(make_run(["2d"], {1: "liver"}, [1]))


def test_alarms_of_a_training_are_said_with_their_fold() -> None:
    files = make_run(["2d"], {1: "liver"}, [1])
    records.write_facts(files.training_facts("2d", 1), facts(alarms=(f"label {EVIL} was never predicted",)))
    page = page_of(files)
    assert '<span class="alarm">Fold 1: label &lt;script&gt;' in page and "Fold 0:" not in page
    assert "<li>2d, fold 1: label &lt;script&gt;alert(1)&lt;/script&gt; was never predicted.</li>" in page, "at the top"


def test_facts_of_a_training_come_back_as_they_were_written(tmp_path: Path) -> None:
    written = facts(alarms=("one", "two"))
    records.write_facts(tmp_path / "training.json", written)
    assert records.read_facts(tmp_path / "training.json") == written


def test_living_skips_are_one_sentence() -> None:
    page = page_of(make_run(["2d"], {1: "liver"}, [1]))
    text = re.sub(r"\s+", " ", page)
    assert "2d: all 4 connections of 2 networks are alive; zeroing one changes the logits by 25% to 50%." in text
    assert "4 of 64 channels are constant" in text


def test_a_dead_and_a_silent_skip_are_shown_with_their_fold() -> None:
    files = make_run(["2d"], {1: "liver"}, [1])
    dead = skip_row(skip="2: 4 x 5", dead_channels=16, mean_abs=0.0, effect=0.0, verdict="dead")
    silent = skip_row(effect=0.004, verdict="silent")
    records.write_table(files.skips("2d", 1), records.SKIPS, [silent, dead])
    text = re.sub(r"\s+", " ", page_of(files))
    assert "2d: 2 of 4 connections of 2 networks are dead or silent." in text
    assert (
        '<td>1</td><th scope="row" class="name">2: 4 × 5</th><td class="alarm">dead</td><td class="num">16 / 16</td>'
        in text
    )
    assert '<td class="num">0.4%</td>' in text and "Silent: the logits change by less than 1%" in text
    assert '<td>0</td><th scope="row" class="name">1' not in text, "fold 0 has none"


def test_a_network_without_skips_says_so() -> None:
    files = make_run(["2d"], {1: "liver"}, [1])
    for fold in (0, 1):
        records.write_table(files.skips("2d", fold), records.SKIPS, [])
    assert "2d: no skip connection was found in this network." in page_of(files)


def test_trainings_that_left_nothing_but_weights_still_make_a_page() -> None:
    files = make_run(["2d"], {1: "liver"}, [1])
    for fold in (0, 1):
        for path in files.training("2d", fold).iterdir():
            path.unlink()
    page = page_of(files)
    assert not any(f'"{part}"' in page for part in ("seen", "training", "skips", "#seen", "#training", "#skips"))


def test_the_patches_of_one_fold_are_shown_at_a_fraction_of_their_size() -> None:
    files = make_run(["2d"], {1: "liver"}, [1])
    random = np.random.default_rng(0)
    images, masks = random.normal(size=(6, 1, 80, 80)).astype(np.float32), np.zeros((6, 0, 80, 80), bool)
    png = figures.before_and_after(images, images, masks, masks)
    files.augmented("2d", 1).write_bytes(png)
    files.augmented("2d", 0).unlink()
    tags = Tags(page_of(files))
    (picture,) = [image for image in tags.images if "augmentation" in str(image["alt"])]
    jpeg = base64.b64decode(str(picture["src"]).removeprefix("data:image/jpeg;base64,"))
    assert len(jpeg) < len(png) / 2
    shape = matplotlib.image.imread(io.BytesIO(jpeg), format="jpeg").shape
    assert shape == (*matplotlib.image.imread(io.BytesIO(png), format="png").shape[:2], 3)


def test_no_seconds_are_no_speed() -> None:
    nothing = facts(steps=0, elapsed_s=0.0, waited_s=0.0)
    assert math.isnan(nothing.samples_per_second) and math.isnan(nothing.data_share)


@pytest.mark.parametrize(
    ("num_cases", "wanted", "expected"),
    [(1, 3, "w"), (2, 3, "wb"), (3, 3, "wmb"), (5, 3, "wmb"), (6, 3, "wwmmbb"), (60, 3, "wwwmmmbbb"), (60, 1, "wmb")],
)
def test_no_case_is_shown_twice(num_cases: int, wanted: int, expected: str) -> None:
    dsc = np.linspace(0.1, 0.9, num_cases)
    table = pd.DataFrame({"case": [f"c{index:02}" for index in range(num_cases)], "dsc": dsc}).sample(
        frac=1, random_state=0
    )
    shown = scores.choose_cases(table, wanted)
    assert "".join(one.rank[0] for one in shown) == expected
    assert len({one.case for one in shown}) == len(shown)
    assert [one.dsc for one in shown] == sorted(one.dsc for one in shown)
    if num_cases == 60 and wanted == 3:
        assert [one.case for one in shown] == ["c00", "c01", "c02", "c28", "c29", "c30", "c57", "c58", "c59"]


def test_the_best_is_bold_by_the_number_that_is_printed() -> None:
    rows = [
        {"configuration": name, "label": "mean", "dsc": dsc, "nsd": math.nan, "hd95_worst_mm": hd95_mm}
        for name, dsc, hd95_mm in (("2d", 0.91234, 2.0), ("3d", 0.91241, 4.0), ("ensemble", 0.90, math.nan))
    ]
    best = [row["best"] for row in scores.result_rows(pd.DataFrame(rows))]
    assert best == [{"dsc", "hd95_worst_mm"}, {"dsc"}, set()]


def test_names_that_look_like_numbers_or_nothing_stay_names(tmp_path: Path) -> None:
    columns = ["case", "name", "dsc", "hd95_mm"]
    rows = [{"case": "007", "name": "NA", "dsc": None, "hd95_mm": math.inf}]
    records.write_table(tmp_path / "metrics.tsv", columns, rows)
    row = scores.read_frame(tmp_path / "metrics.tsv").iloc[0]
    assert (row["case"], row["name"]) == ("007", "NA")
    assert math.isnan(row["dsc"]) and math.isinf(row["hd95_mm"])


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (math.nan, "–"), (math.inf, "∞"), (-0.5, "−0.500")])
def test_no_value_and_infinity_have_signs_of_their_own(value: float | None, text: str) -> None:
    assert scores.number(value) == text


def test_the_page_says_which_plans_were_edited_and_what_was_left_out(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    files = Results("a")
    for name, left_out in (("made", None), ("edited", None), ("3d_lowres", "scans are small")):
        content = {"left_out": left_out, "batch_size": 2}
        records.write_json(files.plan(name), {**content, "digest": digest(content)})
    config = {"configurations": {"made": {}, "edited": {}, "3d_lowres": {}}}
    assert stages.plan_notes(files, ["made"], config) == ["3d_lowres was left out: scans are small."]
    content = {**records.read_json(files.plan("edited")), "batch_size": 5}
    records.write_json(files.plan("edited"), content)
    assert stages.plan_notes(files, ["made", "edited"], config)[0] == "The plan of edited was edited by hand."
    assert [key for key, *_ in stages.plan_rows(content)] == ["batch_size"], "neither digest nor what has no value"


def test_a_plan_reads_like_a_plan() -> None:
    assert stages.plain([None, 1.0, 1.25], " × ") == "as it is × 1 × 1.25"
    plan = {"labels": [0, 1, 2], "left_out": None, "patch_size": [8, 16], "reasons": {"patch_size": "it fits"}}
    assert stages.plan_rows(plan) == [
        ("patch_size", "8 × 16", "it fits"),
        ("labels", "0, 1, 2", ""),
    ]
    assert stages.plain([[1, 2, 2], [2, 2, 2]], " × ") == "1 × 2 × 2; 2 × 2 × 2"
    assert stages.plain([{"features": 8, "seconds": 0.5}]) == "features 8, seconds 0.5"


def draw(volume: Any, reference: Any, prediction: Any, colours: dict[int, str]) -> Any:
    """(rows downwards, columns, RGB) of the overlay, 0 to 1."""
    content = figures.overlay(volume, reference, prediction, spacing_mm=(1.0, 1.0, 2.0), window=(0, 1), colours=colours)
    return matplotlib.image.imread(io.BytesIO(content), format="jpeg") / 255.0


def test_right_anterior_and_superior_are_drawn_right_and_up() -> None:
    volume = np.zeros((20, 20, 10), np.float32)
    volume[10:, 10:] = 1  # right anterior
    nothing = np.zeros(volume.shape, np.int32)
    pixels = draw(volume, nothing, nothing, {})[..., 0]
    rows, columns = pixels.shape
    axial = pixels[:, : columns * 20 // 61]
    quarter = axial.shape[0] // 4, axial.shape[1] // 4
    assert axial[quarter[0], -quarter[1]] > 0.9, "right anterior is up right"
    assert max(axial[quarter[0], quarter[1]], axial[-quarter[0], quarter[1]], axial[-quarter[0], -quarter[1]]) < 0.1
    assert rows / axial.shape[1] == pytest.approx(1, abs=0.05), "10 slices of 2 mm are as high as 20 voxels of 1 mm"


def test_reference_and_prediction_are_drawn_in_the_colour_of_their_label() -> None:
    reference, prediction = np.zeros((2, 20, 20, 10), np.int32)
    reference[2:10, 5:15, 2:8] = 1
    prediction[10:18, 5:15, 2:8] = 2
    black = np.zeros(reference.shape, np.float32)
    pixels = draw(black, reference, prediction, {1: "#ff0000", 2: "#00ff00"})
    red, green = (pixels[..., channel] - pixels[..., 1 - channel] for channel in (0, 1))
    assert red.max() > 0.4 and green.max() > 0.4
    assert draw(black, reference, prediction, {})[..., 0].max() > 0.5, "the letters only"


def test_with_regions_the_reference_is_drawn_in_the_values_of_the_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A voxel of 2 in the region of 1 and 2 is painted as 1, which has the colour of the region."""
    files = make_run(["3d"], {1: "core", 2: "rim"}, present=[1, 2])
    cohort = dataclasses.replace(records.read_cohort(files.cohort), regions={"both": [1, 2]})
    records.write_cohort(files.cohort, cohort)
    fingerprint.main(files.name)
    evaluate.main(files.name, "3d", "0,1", json.dumps({"tolerance_mm": 2}))
    drawn: list[set[int]] = []

    def overlay(_: Any, reference: Any, *__: Any, colours: dict[int, str], **___: Any) -> bytes:
        drawn.append(set(np.unique(reference).tolist()) - colours.keys())
        return b""

    monkeypatch.setattr(figures, "overlay", overlay)
    page_of(files)
    assert drawn and drawn == [{0}] * len(drawn)


def test_the_planes_go_through_a_labelled_voxel_even_of_a_ring() -> None:
    ring = np.zeros((15, 15, 3), np.int32)
    ring[2:13, 2:13, 1] = 1
    ring[4:11, 4:11, 1] = 0
    empty = np.zeros_like(ring)
    assert ring[figures.label_centre(ring, empty)] == 1
    assert ring[figures.label_centre(empty, ring)] == 1
    assert figures.label_centre(empty, empty) == (7, 7, 1)


def test_a_constant_volume_has_a_window() -> None:
    assert figures.grey_window(np.full(SHAPE, 3, np.float32), is_ct=False) == (3, 4)
    assert figures.grey_window(np.full(SHAPE, 3, np.float32), is_ct=True) == figures.CT_WINDOW_HU


def test_the_same_results_give_the_same_figures() -> None:
    table = pd.DataFrame(
        {"step": [1, 2], "train_loss": [1, 0.5], "validation_loss": [1, 2], "validation_dsc": [0, 0.5]}
    )
    first, second = (plots.learning_curves({("2d", 0): table}) for _ in range(2))
    assert first == second


def test_learning_curves_have_no_panel_of_a_dsc_that_nobody_measured() -> None:
    table = pd.DataFrame(
        {"step": [1, 2], "train_loss": [1, 0.5], "validation_loss": [1, 2], "validation_dsc": math.nan}
    )
    of_values = plots.learning_curves({("2d", 0): table})
    of_labels = plots.learning_curves({("2d", 0): table.assign(validation_dsc=0.5), ("3d", 0): table})
    assert (b"2d: loss" in of_values, b"validation DSC" in of_values) == (True, False)
    assert b"3d: validation DSC" in of_labels


def test_errors_of_a_regression_are_said_in_digits_that_count_and_no_dsc_is() -> None:
    files = make_run_of_values(["2d", "3d", "ensemble"])
    choice = records.read_json(files.choice)
    nothing = {"reason": "a regression has no labels to clean", "per_fold": {"0": {}, "1": {}}, "for_new_scans": {}}
    scores = {"scores": {"2d+3d": 0.00012346, "2d": 1234.5678}, "postprocess": nothing}
    records.write_json(files.choice, {**choice, **scores})
    page = page_of(files)
    assert '<td class="num">0.0001235</td>' in page
    assert '<td class="num">1235</td>' in page
    (of_curves,) = (str(image["alt"]) for image in Tags(page).images if "loss" in str(image["alt"]))
    assert of_curves.startswith("Training and validation loss over the steps")


def test_images_survive_the_way_into_the_page() -> None:
    source = pictures.as_source(b"\x00\xff", "png")
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == b"\x00\xff"
