"""The page of the whole hippocampus cohort in Chromium: its size, the time to a table that can be used, every case in the viewer.

`python -m tests.bench.page ../shared/data/hippocampus FOLDER`: masks are the references, moved by a voxel: nothing is trained.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from pipeline import evaluate, fingerprint, records
from pipeline.paths import Results
from pipeline.records import Case, Cohort
from pipeline.report import __main__ as report
from tests.bench.ours import machine, record
from tests.browser import Browser
from tests.checked import write_checked

LABELS = {0: "background", 1: "anterior", 2: "posterior"}
CONFIGURATIONS = ("2d", "3d_fullres")
IS_USABLE = "document.querySelector('#table ~ .filters output')?.value"


def main(scans: Path, folder: Path) -> None:
    scans, names = scans.resolve(), sorted(path.name for path in (scans / "labelsTr").glob("*.nii.gz"))
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    files = make_run(scans, names)
    start = time.monotonic()
    report.main(files.name, json.dumps({"title": "", "cases": 3}), "{}", threads=2)
    made = f"{files.report.stat().st_size / 1e6:.1f} MB, made in {time.monotonic() - start:.1f} s"
    waits: list[float] = []
    with tempfile.TemporaryDirectory() as profile, Browser(Path(profile)) as browser:
        time.sleep(3)  # the browser itself has started
        for _ in range(3):
            start = time.monotonic()
            browser.call("Page.navigate", url=files.report.resolve().as_uri())
            browser.wait(f"location.protocol === 'file:' && Boolean({IS_USABLE})")
            waits.append(time.monotonic() - start)
            print(f"usable after {waits[-1]:.2f} s: {browser.run(IS_USABLE)}", flush=True)
            browser.open(Path("/dev/null"))
        browser.open(files.report)
        start = time.monotonic()
        for name in names:
            case = name.removesuffix(".nii.gz")
            browser.run(f"openCase('{case}')")
            assert browser.run("document.getElementById('viewer').dataset.ready") == case, case
            assert browser.run("document.getElementById('viewer-status').textContent") == "", case
        opened = f"{len(names)} of {len(names)} cases opened in the viewer, {(time.monotonic() - start) / len(names):.2f} s each"
        assert browser.errors == [], browser.errors
    figures = made, f"usable after {min(waits):.2f} to {max(waits):.2f} s", f"{opened}, WebGL by the CPU"
    setting = f"{scans.name}, {' and '.join(CONFIGURATIONS)}, Chromium without a window, {machine(2)}"
    record([("page", "Segsnake", figure, setting) for figure in figures])


def make_run(scans: Path, names: list[str]) -> Results:
    files, rng, cases = Results("page"), np.random.default_rng(0), []
    for index, name in enumerate(names):
        case = name.removesuffix(".nii.gz")
        cases.append(Case(case, case, index % 5, scans / "labelsTr" / name, (scans / "imagesTr" / name,)))
        label = nib.load(scans / "labelsTr" / name)
        for configuration in CONFIGURATIONS:
            path = files.mask(configuration, case)
            path.parent.mkdir(parents=True, exist_ok=True)
            moved = np.roll(np.asarray(label.dataobj).astype(np.uint8), rng.integers(-1, 2, 3), (0, 1, 2))
            nib.save(nib.Nifti1Image(moved, label.affine), path)
    write_checked(files, cases)
    records.write_cohort(files.cohort, Cohort("hippocampus", "msd", LABELS, {0: "MRI"}))
    fingerprint.main(files.name)
    for configuration in CONFIGURATIONS:
        records.write_json(files.plan(configuration), {"dims": 3})
    evaluate.main(files.name, ",".join(CONFIGURATIONS), "0,1,2,3,4", json.dumps({"tolerance_mm": 2}), threads=2)
    return files


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
