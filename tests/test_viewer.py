"""Promises of what the page's viewer gets to draw; that it draws is shown in `test_page.py`."""

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from pipeline import records
from pipeline.images import read_ras
from pipeline.paths import Results
from pipeline.report import viewer
from tests.test_report import make_run, make_run_of_values

NPM_SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"  # dist/niivue.umd.js, npm 0.69.0
SHAPE = (9, 11, 13)


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def decoded(text: str) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def content_of(files: Results, case: str) -> dict[str, Any]:
    text = files.report_case(case).read_text()
    return dict(json.loads(text.removeprefix("receiveCase(").removesuffix(");\n")))


def saved(files: Results, case: str) -> dict[str, Any]:
    (one,) = [one for one in records.read_cases(files.checked_cases) if one.case == case]
    files.report_cases.mkdir()
    size = viewer.save_case(one, files=files, cohort=records.read_cohort(files.cohort), configuration="2d")
    assert size == files.report_case(case).stat().st_size
    return content_of(files, case)


def test_volumes_come_back_as_they_were_with_every_channel_in_256_greys() -> None:
    content = saved(make_run(["2d"], {1: "liver", 44: "spleen"}, [1, 44], channels=["T1", "T2"]), "case_2")
    assert decoded(content["images"][0]).header.get_zooms() == pytest.approx((0.7, 1.0, 2.5))
    reference, prediction = (np.asarray(decoded(content[name]).dataobj) for name in ("reference", "prediction"))
    assert set(np.unique(reference)) == {0, 1, 44} and 0 < (prediction > 0).sum() < (reference > 0).sum()
    for index, image in enumerate(content["images"]):
        greys = np.asarray(decoded(image).dataobj)
        assert greys.dtype == np.uint8 and (greys.min(), greys.max()) == (0, 255)
        scan = read_ras(Path(f"scans/case_2_{index:04d}.nii.gz"))[0]
        assert np.corrcoef(greys.ravel(), scan.ravel())[0, 1] > 0.7, "a window cuts off the ends"


def test_values_share_a_window_and_their_difference_is_0_in_the_middle() -> None:
    rng = np.random.default_rng(0)
    reference = rng.uniform(10, 20, SHAPE).astype(np.float32)
    prediction = reference.copy()
    prediction[0], prediction[1] = prediction[0] + 5, prediction[1] - 5
    maps, limits = viewer.shaded_values(reference, prediction)
    low, high = limits["values"]
    for name, values in (("reference", reference), ("prediction", prediction)):
        back = low + maps[name] / 255 * (high - low)
        np.testing.assert_allclose(back, values.clip(low, high), atol=(high - low) / 255)
    assert limits["most"] == pytest.approx(5, rel=1e-6)
    assert (set(np.unique(maps["difference"][0])), set(np.unique(maps["difference"][1]))) == ({255}, {0})
    assert set(np.unique(maps["difference"][2:])) == {128}


def test_a_perfect_prediction_has_no_difference_and_still_a_scale() -> None:
    maps, limits = viewer.shaded_values(*np.full((2, *SHAPE), 7, np.float32))
    assert limits["most"] == 1 and (maps["difference"] == 128).all()


def test_a_case_of_a_regression_has_its_maps_in_place_of_masks() -> None:
    content = saved(make_run_of_values(["2d"]), "case_3")
    volumes = {name: np.asarray(decoded(content[name]).dataobj) for name in ("reference", "prediction", "difference")}
    assert (volumes["difference"] < 128).any() and (volumes["difference"] <= 128).all(), (
        "values are missing, none is new"
    )
    assert content["values"] == [0, 1] and content["most"] == 1


def test_labels_above_255_keep_their_values() -> None:
    labels = np.zeros(SHAPE, np.int32)
    labels[1, 2, 3] = 40_000
    assert np.asarray(decoded(viewer.as_nifti(labels, (1, 1, 1))).dataobj)[1, 2, 3] == 40_000


def test_a_large_scan_is_thinned_along_its_fine_axes_first() -> None:
    assert viewer.thinning((35, 50, 36), (1, 1, 1)) == [1, 1, 1]
    assert viewer.thinning((512, 512, 40), (0.7, 0.7, 5)) == [2, 2, 1]
    step = viewer.thinning((512, 512, 600), (0.7, 0.7, 0.7))
    assert np.prod([-(-size // every) for size, every in zip((512, 512, 600), step, strict=True)]) <= 4_000_000


def test_a_scan_of_nothing_but_nan_is_black() -> None:
    assert not viewer.shades(np.full(SHAPE, np.nan, np.float32), (-160, 240)).any()


def test_a_script_of_a_case_is_one_call_with_plain_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer, "LARGEST_INSIDE", 0)
    files = make_run(["2d"], {1: "liver"}, [1])
    cases, cohort = records.read_cases(files.checked_cases), records.read_cohort(files.cohort)
    (files.report_cases / "old.js").parent.mkdir()
    (files.report_cases / "old.js").write_text("of an earlier run")
    assert viewer.store(files, cases, cohort, "2d", threads=1) == {}
    assert sorted(path.stem for path in files.report_cases.iterdir()) == ["_end", *(case.case for case in cases)]
    text = files.report_case("case_0").read_text()
    assert re.fullmatch(r"receiveCase\(\{[^<>&]*\}\);\n", text)
    assert json.loads(text[len("receiveCase(") : -len(");\n")])["case"] == "case_0"
    monkeypatch.setattr(viewer, "LARGEST_INSIDE", 1e6)
    inside = viewer.store(files, cases, cohort, "2d", threads=1)
    assert json.loads(inside["case_0"]) == json.loads(text[len("receiveCase(") : -len(");\n")])
    assert not files.report_cases.exists()


def test_scores_of_a_case_are_said_in_words() -> None:
    rows = [
        {"case": "a", "name": "liver", "status": "ok", "dsc": 0.9, "hd95_mm": 2.0},
        {"case": "a", "name": "spleen", "status": "missed", "dsc": 0.0, "hd95_mm": np.inf},
    ]
    (one,) = viewer.case_list(pd.DataFrame(rows))
    assert one == {"case": "a", "scores": "liver DSC 0.900, HD95 2.0 mm; spleen DSC 0.000, HD95 ∞ mm, missed"}
    (one,) = viewer.case_list(pd.DataFrame([{"case": "a", "mae": 1.5, "rmse": 12345.6}]))
    assert one == {"case": "a", "scores": "Mean absolute error 1.5, root mean square error 1.235e+04"}


def test_niivue_is_what_its_authors_published_and_comes_with_its_licence() -> None:
    content = gzip.decompress(base64.b64decode(viewer.niivue()))
    assert hashlib.sha256(content).hexdigest() == NPM_SHA256
    assert "Copyright (c) 2021, Niivue" in viewer.licences()
