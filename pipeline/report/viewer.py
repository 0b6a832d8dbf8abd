"""Scans and masks to what the page's viewer draws: small NIfTI files in text, each case in a script of its own.

A page that is opened from a disk may not fetch files; it may run scripts. The cases of a small cohort lie in the page, those
of a large one in a folder beside it; either way a case is decoded when somebody opens it. Draws nothing: that is up to
`templates/viewer.js` and NiiVue, which is kept here as its authors made it.
"""

import base64
import gzip
import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.contrib.concurrent import process_map

from pipeline import figures
from pipeline.images import Spacing, Volume, read_labels_ras, read_ras
from pipeline.intensity import is_ct
from pipeline.paths import Results
from pipeline.records import Case, Cohort
from pipeline.report.scores import Row, lowest, number
from pipeline.targets import as_painted

NIIVUE = Path(__file__).with_name("niivue")
LARGEST_INSIDE = 20e6  # bytes of all cases together that the page holds itself
LARGEST_SHOWN = (
    4_000_000  # voxels of a volume; of a larger one, every second, third ... voxel along its fine axes is shown
)


def store(
    files: Results, cases: Sequence[Case], cohort: Cohort, configuration: str, *, threads: int = 1
) -> dict[str, str]:
    """Write one script per case; its JSON by case where all are few enough to lie in the page, else nothing."""
    folder = files.report_cases
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save = partial(save_case, files=files, cohort=cohort, configuration=configuration)
    chunk = 1 + len(cases) // (16 * threads)
    sizes = process_map(save, cases, max_workers=threads, chunksize=chunk, desc="report", mininterval=1)
    if sum(sizes) > LARGEST_INSIDE:
        return {}
    inside = {case.case: files.report_case(case.case).read_text() for case in cases}
    shutil.rmtree(folder)
    return {case: text.removeprefix("receiveCase(").removesuffix(");\n") for case, text in inside.items()}


def case_list(metrics: pd.DataFrame) -> list[Row]:
    """Every case of one configuration with its scores in words, lowest DSC first."""
    return [
        {"case": case, "scores": "; ".join(words(score) for score in lowest(of_case))}
        for case, of_case in metrics.groupby("case", sort=False)
    ]


def words(score: Row) -> str:
    status = "" if score["status"] == "ok" else f", {score['status'].replace('_', ' ')}"
    return f"{score['name']} DSC {number(score['dsc'])}, HD95 {number(score['hd95_mm'], '.1f')} mm{status}"


def save_case(case: Case, *, files: Results, cohort: Cohort, configuration: str) -> int:
    """Write the script of one case, and say how many bytes it has."""
    path = files.report_case(case.case)
    volume, grid = read_ras(case.channels[0])
    assert case.label is not None, case
    reference = as_painted(read_labels_ras(case.label)[0], cohort)
    prediction = read_labels_ras(files.mask(configuration, case.case))[0]
    content = encoded(
        volume, reference, prediction, spacing_mm=grid.spacing_mm, in_hu=is_ct(cohort.channels[min(cohort.channels)])
    )
    path.write_text(f"receiveCase({json.dumps({'case': case.case, **content})});\n")
    return path.stat().st_size


def encoded(
    volume: Volume, reference: NDArray[np.integer], prediction: NDArray[np.integer], *, spacing_mm: Spacing, in_hu: bool
) -> Row:
    """Three (I, J, K) arrays in RAS order as text, thinned to what a browser can hold; the scan in 256 greys."""
    step = thinning(volume.shape, spacing_mm)
    thin = tuple(slice(None, None, every) for every in step)
    low, high = figures.grey_window(volume, is_ct=in_hu)
    greys = (np.nan_to_num((volume[thin] - low) / (high - low)).clip(0, 1) * 255).round().astype(np.uint8)
    shown_mm = [every * mm for every, mm in zip(step, spacing_mm, strict=True)]
    volumes = {"image": greys, "reference": reference[thin], "prediction": prediction[thin]}
    return {
        "shape": greys.shape,
        "spacing_mm": shown_mm,
        "step": step,
        **{name: as_nifti(array, shown_mm) for name, array in volumes.items()},
    }


def thinning(shape: Sequence[int], spacing_mm: Sequence[float]) -> list[int]:
    """Of how many voxels one is shown along each axis: the finest axis is thinned first."""
    step = [1, 1, 1]
    while np.prod([-(-size // every) for size, every in zip(shape, step, strict=True)]) > LARGEST_SHOWN:
        finest = int(np.argmin([every * mm for every, mm in zip(step, spacing_mm, strict=True)]))
        step[finest] += 1
    return step


def as_nifti(array: NDArray[np.integer], spacing_mm: Sequence[float]) -> str:
    """A gzipped NIfTI file in base64, 8 bits a voxel or 16 for labels above 255, with the first voxel at 0 mm."""
    kind = np.uint8 if array.max(initial=0) < 256 else np.dtype("<u2")
    content = nib.Nifti1Image(array.astype(kind), np.diag([*spacing_mm, 1.0])).to_bytes()
    return base64.b64encode(gzip.compress(content, mtime=0)).decode("ascii")


def niivue() -> str:
    """NiiVue's gzipped script in base64."""
    return base64.b64encode((NIIVUE / "niivue.umd.js.gz").read_bytes()).decode("ascii")


def licences() -> str:
    return (NIIVUE / "LICENSES.txt").read_text()
