"""Promises of what the page's viewer gets to draw; that it draws is shown in `test_page.py`."""

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from pipeline import records
from pipeline.report import viewer
from tests.test_report import make_run

NPM_SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"  # dist/niivue.umd.js, npm 0.69.0
SHAPE = (9, 11, 13)


def decoded(text: str) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def test_volumes_come_back_as_they_were_with_the_scan_in_256_greys() -> None:
    rng = np.random.default_rng(0)
    volume = rng.normal(size=SHAPE).astype(np.float32)
    labels = rng.integers(0, 3, (2, *SHAPE))
    content = viewer.encoded(volume, *labels, spacing_mm=(0.7, 1.0, 2.5), in_hu=False)
    image = decoded(content["image"])
    assert image.header.get_zooms() == pytest.approx((0.7, 1.0, 2.5))
    greys = np.asarray(image.dataobj)
    assert greys.dtype == np.uint8 and (greys.min(), greys.max()) == (0, 255)
    assert np.corrcoef(greys.ravel(), volume.ravel())[0, 1] > 0.99
    for name, expected in zip(("reference", "prediction"), labels, strict=True):
        np.testing.assert_array_equal(np.asarray(decoded(content[name]).dataobj), expected)


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
    nothing = np.full(SHAPE, np.nan, np.float32)
    content = viewer.encoded(nothing, *np.zeros((2, *SHAPE), np.int32), spacing_mm=(1, 1, 1), in_hu=True)
    assert not np.asarray(decoded(content["image"]).dataobj).any()


def test_a_script_of_a_case_is_one_call_with_plain_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(viewer, "LARGEST_INSIDE", 0)
    files = make_run(["2d"], {1: "liver"}, [1])
    cases, cohort = records.read_cases(files.checked_cases), records.read_cohort(files.cohort)
    (files.report_cases / "old.js").parent.mkdir()
    (files.report_cases / "old.js").write_text("of an earlier run")
    assert viewer.store(files, cases, cohort, "2d", threads=1) == {}
    assert sorted(path.stem for path in files.report_cases.iterdir()) == [case.case for case in cases]
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


def test_niivue_is_what_its_authors_published_and_comes_with_its_licence() -> None:
    content = gzip.decompress(base64.b64decode(viewer.niivue()))
    assert hashlib.sha256(content).hexdigest() == NPM_SHA256
    assert "Copyright (c) 2021, Niivue" in viewer.licences()
