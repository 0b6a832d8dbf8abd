"""Promises of the report that only a browser can keep: it sorts, filters and opens cases, and asks nobody for anything."""

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from pipeline.paths import Results
from pipeline.report import viewer
from tests.browser import CHROMIUM, Browser
from tests.test_report import EVIL, make_run, make_run_of_values, page_of

WITHOUT = "Chromium is not installed, so nothing shows that the page works in a browser"
IS_REQUIRED = "REQUIRE_BROWSER" in os.environ
pytestmark = pytest.mark.skipif(CHROMIUM is None and not IS_REQUIRED, reason=WITHOUT)
ARTEFACTS = Path(__file__).parents[1] / "build"  # pictures of the page, to look at
TABLE = "document.querySelector('#table ~ .scroll table')"
SHOWN = f"[...{TABLE}.tBodies[0].rows].filter(row => !row.hidden)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        files = make_run(["2d", "3d"], {1: "liver", 4: EVIL}, [1, 4], channels=["T1", EVIL])
        page_of(files, title=EVIL)
        yield files


@pytest.fixture
def opened(browser: Browser, finished: Results) -> Iterator[Browser]:
    """At the page, and after the test: no error was logged, nothing but the page was asked for, no script of a name ran."""
    browser.errors.clear()
    browser.asked.clear()
    browser.open(finished.report)
    yield browser
    assert browser.errors == []
    assert [url for url in browser.asked if not url.startswith("data:")] == [finished.report.resolve().as_uri()]


def column(browser: Browser, name: str) -> list[str]:
    """The shown cells of a column of the table of all cases."""
    at = f"[...{TABLE}.tHead.rows[0].cells].findIndex(head => head.textContent === '{name}')"
    return list(browser.run(f"(at => {SHOWN}.map(row => row.cells[at].textContent.trim()))({at})"))


def ready(browser: Browser, case: str) -> None:
    browser.wait(f"document.getElementById('viewer').dataset.ready === '{case}'")


def greys(browser: Browser, canvas: str) -> int:
    """How many different colours a canvas shows, as it is seen on the page."""
    browser.run(f"document.querySelector('{canvas}').scrollIntoView()")
    browser.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    box = browser.run(f"(box => [box.x, box.y, box.width, box.height])({canvas_box(canvas)})")
    pixels = matplotlib.image.imread(io.BytesIO(browser.picture(ARTEFACTS / "viewer.png").read_bytes()), format="png")
    x, y, width, height = (max(0, round(value)) for value in box)
    part = pixels[y : y + height, x : x + width, :3].reshape(-1, 3)
    assert part.size
    return len(np.unique(part, axis=0))


def canvas_box(canvas: str) -> str:
    return f"document.querySelector('{canvas}').getBoundingClientRect()"


def test_a_click_on_a_heading_sorts_and_another_one_turns_the_order(opened: Browser) -> None:
    opened.picture(ARTEFACTS / "page.png")
    click = f"[...{TABLE}.tHead.rows[0].cells].find(head => head.textContent === 'DSC').querySelector('button').click()"
    for order in (1, -1):
        opened.run(click)
        values = [float(text) for text in column(opened, "DSC")]
        assert len(set(values)) > 1 and values == sorted(values)[::order]


def test_rows_are_filtered_by_text_and_by_choice_and_counted(opened: Browser) -> None:
    assert len(column(opened, "case")) == 8
    change = "document.querySelector('#table ~ .filters input').value = 'CASE_2'"
    told = "document.querySelector('#table ~ .filters').dispatchEvent(new Event('input'))"
    opened.run(f"{change}; {told}")
    assert set(column(opened, "case")) == {"case_2"}
    assert opened.run("document.querySelector('#table ~ .filters output').value") == "2 of 8 rows"
    opened.run(f"document.querySelectorAll('#table ~ .filters select')[1].value = '={EVIL}'; {told}")
    assert column(opened, "label") == [EVIL]


def test_a_case_opens_with_its_slices_and_a_viewer_that_is_not_blank(opened: Browser) -> None:
    opened.run(f"{TABLE}.querySelector('[data-case=case_3]').click()")
    ready(opened, "case_3")
    assert opened.run("document.getElementById('viewer-status').textContent") == ""
    assert EVIL in opened.run("document.getElementById('viewer-scores').textContent")
    assert opened.run("document.querySelectorAll('#viewer-planes canvas').length") == 3
    assert greys(opened, "#viewer-planes canvas") > 20, "a slice with contours"
    assert greys(opened, "#viewer-3d") > 200, "the scan as NiiVue draws it"


def test_the_next_case_is_a_click_away_and_a_slider_goes_through_the_slices(opened: Browser) -> None:
    opened.run("document.querySelector('[data-case=case_3]').click()")
    ready(opened, "case_3")
    opened.run("document.getElementById('viewer-next').click()")
    opened.wait("document.getElementById('viewer-title').textContent !== 'case_3'")
    ready(opened, opened.run("document.getElementById('viewer-title').textContent"))
    slider = "document.querySelector('#viewer-planes input')"
    opened.run(f"{slider}.value = 0; {slider}.dispatchEvent(new Event('input'))")
    assert opened.run("document.querySelector('#viewer-planes label').textContent") == "axial 1 of 13 "


def brightness(browser: Browser, number: int) -> list[float]:
    """Of red, green and blue in one of the pictures of slices."""
    script = f"""(canvas => {{
        const {{width, height}} = canvas, pixels = canvas.getContext('2d').getImageData(0, 0, width, height).data;
        const mean = values => values.reduce((sum, one) => sum + one) / values.length;
        return [0, 1, 2].map(part => mean(pixels.filter((_, at) => at % 4 === part)));
    }})(document.querySelectorAll('#viewer-planes canvas')[{number}])"""
    return list(browser.run(script))


def test_another_channel_is_shown_at_the_same_slice_and_stays_for_the_next_case(opened: Browser) -> None:
    opened.run("document.querySelector('[data-case=case_3]').click()")
    ready(opened, "case_3")
    channel, slider = "document.getElementById('viewer-channel')", "document.querySelector('#viewer-planes input')"
    assert opened.run(f"[...{channel}.options].map(option => option.text)") == ["T1", EVIL]
    opened.run(f"{slider}.value = 3; {slider}.dispatchEvent(new Event('input'))")
    before = brightness(opened, 0)
    opened.run(f"{channel}.value = 1; {channel}.dispatchEvent(new Event('change'))")
    ready(opened, "case_3")
    assert opened.run("document.querySelector('#viewer-planes label').textContent") == "axial 4 of 13 "
    assert brightness(opened, 0) != before
    assert greys(opened, "#viewer-3d") > 200
    opened.run("document.getElementById('viewer-next').click()")
    opened.wait(
        "document.getElementById('viewer').dataset.ready !== 'case_3' && document.getElementById('viewer').dataset.ready"
    )
    assert opened.run(f"{channel}.value") == "1"
    opened.run(f"{channel}.value = 0")


def test_right_is_right_and_front_is_up_in_the_slices(opened: Browser) -> None:
    """The first label lies on the left of the scan's axis, which runs to the patient's left: on the right of the picture."""
    opened.run("document.querySelector('[data-case=case_0]').click()")
    ready(opened, "case_0")
    is_orange = "(at => pixels[at] - pixels[at + 2] > 60)"
    script = f"""(canvas => {{
        const {{width, height}} = canvas, pixels = canvas.getContext('2d').getImageData(0, 0, width, height).data;
        let sum = 0, count = 0;
        for (let at = 0; at < pixels.length; at += 4) if ({is_orange}(at)) {{ sum += (at / 4) % width; count++; }}
        return sum / count / width;
    }})(document.querySelector('#viewer-planes canvas'))"""
    assert opened.run(script) > 0.6


def test_an_address_with_a_case_opens_it(browser: Browser, finished: Results) -> None:
    browser.open(finished.report, "#case=case_1")
    browser.run("location.reload()")
    browser.wait("document.readyState === 'complete' && document.getElementById('viewer')?.dataset.ready === 'case_1'")


def test_a_case_of_a_regression_shows_scan_reference_prediction_and_their_difference(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the prediction is too low, the difference is blue; there is one channel, so none to choose."""
    monkeypatch.chdir(tmp_path)
    files = make_run_of_values(["2d"])
    page_of(files)
    browser.errors.clear()
    browser.open(files.report)
    browser.run(f"{TABLE}.querySelector('[data-case=case_3]').click()")
    ready(browser, "case_3")
    assert browser.run("document.querySelectorAll('#viewer-planes canvas').length") == 12
    assert browser.run("document.querySelector('#viewer-planes label').textContent") == "axial 3 of 13 ", "has values"
    assert browser.run("document.getElementById('viewer-values-text').textContent") == "0 to 1"
    assert browser.run("document.getElementById('viewer-errors-text').textContent") == "-1 to 1"
    reference, prediction, (red, _, blue) = (brightness(browser, number) for number in (1, 2, 3))
    assert reference[0] > prediction[0] and blue > red + 5
    assert browser.run("document.querySelector('label:has(#viewer-channel)').checkVisibility()") is False
    assert greys(browser, "#viewer-3d") > 200
    browser.picture(ARTEFACTS / "values.png")
    assert browser.errors == []


def test_cases_of_a_large_cohort_lie_beside_the_page(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(viewer, "LARGEST_INSIDE", 0)
    files = make_run(["2d"], {1: "liver"}, [1])
    assert 'data-volumes="case' not in page_of(files)
    files.report_case("case_1").unlink()
    browser.errors.clear()
    browser.open(files.report)
    missing = "document.getElementById('viewer-missing').checkVisibility()"
    assert browser.run(missing) is False
    browser.run("document.querySelector('[data-case=case_0]').click()")
    ready(browser, "case_0")
    assert browser.errors == []
    browser.run("openCase('case_1')")
    told = browser.run("document.getElementById('viewer-status').textContent")
    assert told.startswith("This case cannot be shown: report_cases/case_1.js is missing: keep the folder beside")
    shutil.rmtree(files.report_cases)
    browser.run("location.reload()")
    browser.wait(f"document.readyState === 'complete' && {missing}")
