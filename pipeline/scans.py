"""A folder, file or table to the new scans in it: which files are the channels of a case, and which beside them is its label.

Scans lie in the folder itself, `imagesTs`, `imagesTr` or `images`; `case_0000`, `case_0001`, … are the channels of one case,
and labels lie in `labelsTs`, `labelsTr` or `labels`. Where there is no such file, every DICOM series in the folder and below
is a case. Reads names, and of DICOM the headers; a scan that cannot be used is named, so that the others go on.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline import dicom, records
from pipeline.errors import CohortError
from pipeline.formats import SUFFIXES, kind_of, split_suffix
from pipeline.records import Case

CHANNEL_SUFFIX = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})$")
IMAGE_FOLDERS = ("imagesTs", "imagesTr", "images", ".")
LABEL_FOLDERS = ("labelsTs", "labelsTr", "labels")


@dataclass(frozen=True)
class Scan:
    """`series`: the DICOM files that the case's one channel is made of. `refused`: why there can be no mask, or empty."""

    case: Case
    series: tuple[Path, ...] = ()
    refused: str = ""


def find_scans(place: Path, num_channels: int, converted: Callable[[str], Path]) -> list[Scan]:
    """The scans of a folder or file, sorted by case; or those of a table of cases, as `check` writes it of the test split.

    Args:
        converted: where the file of a DICOM series will lie, by its name such as `case_0000`.

    Raises:
        CohortError: no scan at all.
    """
    if place.suffix == ".tsv":
        return [Scan(replace(case, fold=0)) for case in records.read_cases(place)]  # as all new scans
    if place.is_file():
        return [_scan(_case_id(place, num_channels), [place], num_channels, label=None)]
    for part in IMAGE_FOLDERS:
        if found := _scan_files(place / part):
            return _scans_of_files(place, found, num_channels)
    scans = [
        _series_scan(series, converted(f"{series.name}_0000"), num_channels)
        for series in sorted(dicom.find_series(place), key=lambda series: series.name)
    ]
    if not scans:
        raise CohortError(
            f"{place}: no scan ({' '.join(SUFFIXES)}) and no DICOM series there. Give the folder that holds the scans."
        )
    return _without_twins(scans)


def _scan_files(folder: Path) -> list[Path]:
    """In order of names; pictures only where there is nothing else, for beside scans they show something of them."""
    found = sorted(path for path in folder.glob("*") if split_suffix(path.name)[1] and path.is_file())
    return [path for path in found if kind_of(path) != "picture"] or found


def _scans_of_files(folder: Path, found: list[Path], num_channels: int) -> list[Scan]:
    channels: dict[str, list[Path]] = {}
    for path in found:
        channels.setdefault(_case_id(path, num_channels), []).append(path)
    labels = {_name(path): path for part in LABEL_FOLDERS for path in _scan_files(folder / part)}
    scans = [_scan(case, paths, num_channels, labels.get(case)) for case, paths in channels.items()]
    return _without_twins(sorted(scans, key=lambda scan: scan.case.case))


def _name(path: Path) -> str:
    name, suffix = split_suffix(path.name)
    if not suffix:
        raise CohortError(
            f"{path}: one of {' '.join(SUFFIXES)} expected. Convert the file; of DICOM give the folder of the series."
        )
    return name


def _case_id(path: Path, num_channels: int) -> str:
    """The name without its channel; where there is one channel, the number of `patient_0001` is the patient's."""
    split = CHANNEL_SUFFIX.match(_name(path))
    return split["case"] if split and (num_channels > 1 or split["channel"] == "0000") else _name(path)


def _scan(case: str, channels: list[Path], num_channels: int, label: Path | None) -> Scan:
    """One file of another name than its channels' holds all of them, and stands there once for each."""
    scan = Scan(Case(case, case, fold=0, label=label, channels=tuple(channels)))
    names = [_name(path) for path in channels]
    if len(set(names)) < len(names):
        return replace(scan, refused=f"{case}: two files with the same name. Keep one of them.")
    expected = [f"{case}_{channel:04d}" for channel in range(num_channels)]
    if names == expected:
        return scan
    if names == [case]:
        return replace(scan, case=replace(scan.case, channels=tuple(channels * num_channels)))
    refused = (
        f"{case}: {', '.join(path.name for path in channels)} found in {channels[0].parent}, "
        f"{', '.join(f'{name}.nii.gz' for name in expected)} expected: one file per channel, numbered as in training. "
        "Rename the files or add what is missing."
    )
    return replace(scan, refused=refused)


def _series_scan(series: dicom.Series, converted: Path, num_channels: int) -> Scan:
    case = Case(series.name, series.name, fold=0, label=None, channels=(converted,))
    refused = (
        f"{series.name}: a DICOM series is one channel, {num_channels} as in training expected. "
        "Convert the series of each patient to NIfTI files that end in _0000, _0001, ..."
        if num_channels > 1
        else ""
    )
    return Scan(case, series.files, refused)


def _without_twins(scans: list[Scan]) -> list[Scan]:
    """Cases whose names differ in capitals only would overwrite each other's masks on some disks: refused."""
    count = Counter(scan.case.case.casefold() for scan in scans)
    return [
        scan
        if count[scan.case.case.casefold()] == 1
        else replace(scan, refused=f"{scan.case.case}: another scan has the same name. Rename one of them.")
        for scan in scans
    ]
