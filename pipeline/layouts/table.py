"""A table, tab-separated (.tsv) or comma-separated (.csv), with a line per case: its files wherever they lie, relative to it.

Columns: `case`, `image_0`, `image_1`, … for each channel, or `image_0` alone for files of four axes; and where they are known
`label`, `subject`, `fold` (0, 1, …) and `split` (train or test). Others are left alone. Names of labels and channels are in
config.yaml.
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from pipeline.errors import CohortError
from pipeline.layouts.found import Found, Wanted, cohort_of_config, sorted_cases, subject_of
from pipeline.records import NO_FOLD, Case, Split

DELIMITERS = {".tsv": "\t", ".csv": ","}


def sign(place: Path) -> str | None:
    """Why this is the layout, or None if it is not."""
    is_table = place.suffix.lower() in DELIMITERS and place.is_file()
    return f"{place.name} is a table" if is_table else None


def read(place: Path, wanted: Wanted) -> Found:
    """
    Raises:
        CohortError: a table that cannot be read, or a cell that is not what its column is for.
    """
    cohort = cohort_of_config(place, place.stem, "table", wanted)
    rows = _rows(place)
    return Found(cohort, sorted_cases(place, [_case(place, line, row, len(cohort.channels)) for line, row in rows]))


def _rows(place: Path) -> list[tuple[int, dict[str, str]]]:
    """Every line that is not empty, with its number in the file."""
    if place.suffix.lower() not in DELIMITERS or not place.is_file():
        raise CohortError(f"{place}: no table found, a file .tsv or .csv expected. Correct `cohort:` or `layout:`.")
    try:
        with place.open(newline="", encoding="utf-8-sig") as handle:  # as spreadsheets write it
            reader = csv.DictReader(handle, delimiter=DELIMITERS[place.suffix.lower()], strict=True)
            columns = list(reader.fieldnames or [])
            rows = [(reader.line_num, row) for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise CohortError(
            f"{place}: not a table ({error}), one line per case in UTF-8 expected. Save it anew."
        ) from error
    if missing := [column for column in ("case", "image_0") if column not in columns]:
        raise CohortError(
            f"{place}: columns {', '.join(columns) or 'none'} found, {' and '.join(missing)} expected too, separated by "
            f"{'tabs' if place.suffix.lower() == '.tsv' else 'commas'}. Correct the first line."
        )
    for line, row in rows:
        if None in row or None in row.values():
            raise CohortError(
                f"{place}: line {line} has {'more' if None in row else 'fewer'} cells than the {len(columns)} columns, "
                "one for each expected. Correct it."
            )
    return [(line, {column: cell.strip() for column, cell in row.items()}) for line, row in rows if any(row.values())]


def _case(place: Path, line: int, row: Mapping[str, str], num_channels: int) -> Case:
    where = f"{place}: line {line}, case {row['case']!r}"
    images = [row.get(f"image_{channel}", "") for channel in range(num_channels)]
    if num_channels > 1 and images[0] and not any(images[1:]):
        images = [images[0]] * num_channels
    if not all(images) or row.get(f"image_{num_channels}"):
        found = ", ".join(column for column, cell in row.items() if column.startswith("image_") and cell)
        raise CohortError(
            f"{where}: {found or 'no image'} found, one file for each of {num_channels} channels of config.yaml, or "
            "image_0 alone for a file of four axes, expected. Correct the line or `channels`."
        )
    fold, split = row.get("fold", ""), row.get("split") or "train"
    if split not in get_args(Split):
        raise CohortError(f"{where}: split {split!r} found, {' or '.join(get_args(Split))} expected. Correct it.")
    if fold and not (fold.isascii() and fold.isdigit()):
        raise CohortError(f"{where}: fold {fold!r} found, 0 or a whole number above expected. Correct it.")
    return Case(
        row["case"],
        subject=row.get("subject") or subject_of(row["case"]),
        fold=int(fold) if fold else NO_FOLD,
        label=place.parent / row["label"] if row.get("label") else None,
        channels=tuple(place.parent / image for image in images),
        split="test" if split == "test" else "train",
    )
