"""DICOM series to voxels and an affine: which files are a series, where its slices lie, whether that is a straight grid.

Geometry comes from the position and orientation of every slice, voxels in their units (HU in CT) from SimpleITK, which is
imported only when there is a DICOM file. Knows nothing of cases and models.
"""

import locale
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.check.problem import Problem, Refused, refuse
from pipeline.foreign import RAS_OF_LPS, Stored, simpleitk, unreadable
from pipeline.images import EQUAL_MM, LARGEST_SHIFT, Affine

POSITION, ORIENTATION, PIXEL_SPACING = "0020|0032", "0020|0037", "0028|0030"
ROWS, COLUMNS, SAMPLES_PER_PIXEL = "0028|0010", "0028|0011", "0028|0002"
MAGIC, MAGIC_AT = b"DICM", 128
SAME_DIRECTION = 1e-3  # of direction cosines, which are written with few digits
ADVICE = "Convert it by a tool that knows such series, or drop it."


@dataclass(frozen=True)
class Series:
    name: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Slice:
    """`position_mm`: centre of the first voxel; `right`, `down`: directions along a row and along a column; all in LPS."""

    position_mm: NDArray[np.float64]
    right: NDArray[np.float64]
    down: NDArray[np.float64]
    spacing_mm: tuple[float, float]  # along `right` and `down`
    size: tuple[int, int]


@contextmanager
def own_locale() -> Iterator[None]:
    """SimpleITK sets the plain C locale while it reads DICOM and leaves it so; other libraries then read text as ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


@own_locale()
def find_series(folder: Path) -> list[Series]:
    """Every series in the folder and below, named after its folder, and its UID where the folder holds several."""
    found = []
    for place in _dicom_folders(folder):
        reader = simpleitk("DICOM files").ImageSeriesReader
        uids = reader.GetGDCMSeriesIDs(str(place))
        name = "_".join(place.relative_to(folder).parts) or folder.resolve().name
        for uid in uids:
            files = tuple(Path(file) for file in reader.GetGDCMSeriesFileNames(str(place), uid))
            found.append(Series(f"{name}_{uid}" if len(uids) > 1 else name, files))
    return found


def only_series(folder: Path) -> Series:
    """
    Raises:
        Refused: none or several in the folder and below.
    """
    series = find_series(folder)
    if len(series) != 1:
        names = ", ".join(one.name for one in series[:5]) or "none"
        found, do = f"{len(series)} DICOM series ({names})", "Give each series a folder of its own."
        raise Refused(folder, refuse("dicom-series", found, "one", do))
    return series[0]


def _dicom_folders(folder: Path) -> list[Path]:
    return [
        Path(place)
        for place, _, names in sorted(os.walk(folder))
        if any(_is_dicom(Path(place, name)) for name in names)
    ]


def _is_dicom(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as handle:
        handle.seek(MAGIC_AT)
        return handle.read(len(MAGIC)) == MAGIC


@own_locale()
def read_series(files: tuple[Path, ...]) -> Stored:
    """
    Raises:
        Refused: unreadable, or slices that are no straight, even grid.
    """
    toolkit, folder = simpleitk("DICOM files"), files[0].parent
    slices = {file: _read_slice(toolkit, file) for file in files}
    first = slices[files[0]]
    normal = np.cross(first.right, first.down)
    in_order = sorted(files, key=lambda file: float(slices[file].position_mm @ normal))
    affine, problems = grid_of([slices[file] for file in in_order], folder)
    reader = toolkit.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in in_order])
    reader.SetOutputPixelType(toolkit.sitkFloat32)  # else that of the first slice cuts off fractions of the others
    try:
        voxels = toolkit.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise unreadable(folder, error) from error
    return Stored(_as_small_integers(voxels.transpose(2, 1, 0))[..., None], affine, problems=problems)


def _as_small_integers(voxels: NDArray[np.float32]) -> NDArray:
    """int16 where that loses nothing, as nearly always."""
    small = voxels.astype(np.int16) if np.abs(voxels).max(initial=0) <= np.iinfo(np.int16).max else voxels
    return small if (small == voxels).all() else voxels


def _read_slice(toolkit: Any, file: Path) -> Slice:
    reader = toolkit.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise unreadable(file, error) from error
    needed = (POSITION, ORIENTATION, PIXEL_SPACING, ROWS, COLUMNS)
    if missing := [key for key in needed if not reader.HasMetaDataKey(key)]:
        found = f"no tag {', '.join(missing)}"
        raise Refused(file, refuse("dicom-tag", found, "a slice with position and spacing", ADVICE))
    position, orientation, spacing, rows, columns = (_numbers(reader.GetMetaData(key)) for key in needed)
    if reader.HasMetaDataKey(SAMPLES_PER_PIXEL) and _numbers(reader.GetMetaData(SAMPLES_PER_PIXEL)) != [1]:
        raise Refused(file, refuse("voxel-type", "colours", "one value per voxel", ADVICE))
    return Slice(
        position_mm=np.array(position),
        right=np.array(orientation[:3]),
        down=np.array(orientation[3:]),
        spacing_mm=(spacing[1], spacing[0]),
        size=(int(columns[0]), int(rows[0])),
    )


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split("\\")]


def grid_of(slices: list[Slice], folder: Path) -> tuple[Affine, list[Problem]]:
    """The affine, RAS+ mm, of slices in order along their normal; what was mended.

    A corner of a voxel may lie off by as much as those of a label map may lie off its image's.

    Raises:
        Refused: no straight, even grid: a slice is missing or doubled, the gantry was tilted, slices differ.
    """
    first, count = slices[0], len(slices)
    if count < 2:
        raise Refused(folder, refuse("dicom-slices", "one DICOM file", "one for each slice", ADVICE))
    if any(_plane(one) != _plane(first) or _turned(one, first) for one in slices):
        found = "slices of several sizes, spacings or directions"
        raise Refused(folder, refuse("dicom-slices", found, "one", ADVICE))
    normal = np.cross(first.right, first.down)
    positions = np.stack([one.position_mm for one in slices])
    gaps_mm = np.diff(positions @ normal)
    if gaps_mm.min() < EQUAL_MM:
        found, do = f"{1 + int((gaps_mm < EQUAL_MM).sum())} slices at one place", "Are there several times or echoes? "
        raise Refused(folder, refuse("dicom-slices", found, "one", do + ADVICE))
    step = (positions[-1] - positions[0]) / (count - 1)
    across_mm = float(step @ normal)
    limit_mm = LARGEST_SHIFT * min(*first.spacing_mm, across_mm)
    uneven_mm = float(np.linalg.norm(positions - positions[0] - np.arange(count)[:, None] * step, axis=1).max())
    if uneven_mm > limit_mm:
        found = f"slices up to {uneven_mm:.3g} mm off even steps of {across_mm:.4g} mm"
        do = "Is one missing? Add it, or resample the series."
        raise Refused(folder, refuse("dicom-uneven", found, f"at most {limit_mm:.3g} mm", do))
    aside_mm = float(np.linalg.norm(step - across_mm * normal)) * (count - 1)
    if aside_mm > limit_mm:
        degrees = np.degrees(np.arctan2(aside_mm, across_mm * (count - 1)))
        found, expected = f"a gantry tilt of {degrees:.1f} degrees", "slices straight above each other"
        do = "Resample the series onto a straight grid, as dcm2niix does, or drop it."
        raise Refused(folder, refuse("dicom-tilt", found, expected, do))
    off = {"dicom-uneven": uneven_mm, "dicom-tilt": aside_mm}
    problems = [
        Problem("fix", rule, f"slices {off_mm:.3g} mm off", f"within {EQUAL_MM:g} mm", "Taken as straight and even.")
        for rule, off_mm in off.items()
        if off_mm > EQUAL_MM
    ]
    affine = np.eye(4)
    affine[:3, 0] = first.right * first.spacing_mm[0]
    affine[:3, 1] = first.down * first.spacing_mm[1]
    affine[:3, 2] = normal * across_mm
    affine[:3, 3] = first.position_mm
    return RAS_OF_LPS @ affine, problems


def _plane(one: Slice) -> tuple[object, ...]:
    return (one.size, one.spacing_mm)


def _turned(one: Slice, other: Slice) -> bool:
    return bool(np.abs([one.right - other.right, one.down - other.down]).max() > SAME_DIRECTION)
