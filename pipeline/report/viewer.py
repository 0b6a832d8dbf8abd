"""Scans and masks to what the page's viewer draws: small NIfTI files in text, each case in a script of its own.

A page that is opened from a disk may not fetch files; it may run scripts. The cases of a small cohort lie in the page, those
of a large one in a folder beside it, which is no output that Snakemake knows: whether it is needed shows when the scans are
written, so the page itself says what to do where it is gone. A case is decoded when somebody opens it. Draws nothing: that is
up to `templates/viewer.js` and NiiVue, which is kept here as its authors made it.
"""

import base64
import gzip
import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.contrib.concurrent import process_map

from pipeline import disk, figures
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
        disk.write_text(files.report_cases_end, "// The last file of this folder: report.html looks for it.\n")
        return {}
    inside = {case.case: files.report_case(case.case).read_text() for case in cases}
    shutil.rmtree(folder)
    return {case: text.removeprefix("receiveCase(").removesuffix(");\n") for case, text in inside.items()}


def case_list(metrics: pd.DataFrame) -> list[Row]:
    """Every case of one configuration with its scores in words, in the order of the rows."""
    words = words_of_values if "mae" in metrics else words_of_labels
    return [{"case": case, "scores": words(of_case)} for case, of_case in metrics.groupby("case", sort=False)]


def words_of_labels(of_case: pd.DataFrame) -> str:
    def words(score: Row) -> str:
        status = "" if score["status"] == "ok" else f", {score['status'].replace('_', ' ')}"
        return f"{score['name']} DSC {number(score['dsc'])}, HD95 {number(score['hd95_mm'], '.1f')} mm{status}"

    return "; ".join(words(score) for score in lowest(of_case))


def words_of_values(of_case: pd.DataFrame) -> str:
    score = of_case.iloc[0]
    return f"Mean absolute error {number(score['mae'], '.4g')}, root mean square error {number(score['rmse'], '.4g')}"


def save_case(case: Case, *, files: Results, cohort: Cohort, configuration: str) -> int:
    """Write the script of one case, and say how many bytes it has."""
    path, mask = files.report_case(case.case), files.mask(configuration, case.case)
    assert case.label is not None, case
    images = []
    for channel, (_, name) in zip(case.channels, sorted(cohort.channels.items()), strict=True):
        volume, grid = read_ras(channel)
        step = thinning(volume.shape, grid.spacing_mm)
        images.append(shades(thinned(volume, step), figures.grey_window(volume, is_ct=is_ct(name))))
    if cohort.is_regression:
        maps, limits = shaded_values(*(thinned(read_ras(one)[0], step) for one in (case.label, mask)))
    else:
        reference = as_painted(read_labels_ras(case.label)[0], cohort)
        labels = {"reference": reference, "prediction": read_labels_ras(mask)[0]}
        maps, limits = {name: thinned(array, step) for name, array in labels.items()}, {}
    content = encoded(images, maps, spacing_mm=grid.spacing_mm, step=step)
    text = f"receiveCase({json.dumps({'case': case.case, **content, **limits})});\n"
    disk.write_text(path, text, is_durable=False)
    return path.stat().st_size


def encoded(
    images: Sequence[NDArray[np.integer]],
    maps: Mapping[str, NDArray[np.integer]],
    *,
    spacing_mm: Spacing,
    step: Sequence[int],
) -> Row:
    """(I, J, K) arrays in RAS order as text.

    Args:
        images: one of each channel.
        maps: what is laid over them, by name.
        step: of how many voxels of `spacing_mm` one is there, along each axis.
    """
    shown_mm = [every * mm for every, mm in zip(step, spacing_mm, strict=True)]
    return {
        "shape": images[0].shape,
        "spacing_mm": shown_mm,
        "step": step,
        "images": [as_nifti(image, shown_mm) for image in images],
        **{name: as_nifti(array, shown_mm) for name, array in maps.items()},
    }


def shades(volume: Volume, window: figures.Window) -> NDArray[np.uint8]:
    """A window of values in 256 steps; what is no number is 0."""
    low, high = window
    return (np.nan_to_num((volume - low) / (high - low)).clip(0, 1) * 255).round().astype(np.uint8)


def shaded_values(reference: Volume, prediction: Volume) -> tuple[dict[str, NDArray[np.uint8]], Row]:
    """Both in 256 steps of one window, their difference in 256 steps around 0, and the windows."""
    windows = [figures.grey_window(values, is_ct=False) for values in (reference, prediction)]
    shared = min(low for low, _ in windows), max(high for _, high in windows)
    difference = prediction - reference
    most = float(np.percentile(np.abs(difference), figures.GREY_PERCENTILES[1])) or 1.0
    maps = {"reference": shades(reference, shared), "prediction": shades(prediction, shared)}
    return {**maps, "difference": shades(difference, (-most, most))}, {"values": shared, "most": most}


def thinned(volume: NDArray[Any], step: Sequence[int]) -> NDArray[Any]:
    return volume[tuple(slice(None, None, every) for every in step)]


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
