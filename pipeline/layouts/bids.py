"""BIDS: scans of subjects and sessions below `sub-*`, label maps below `derivatives`, both read by pybids.

A case is a session, or a subject without sessions. Its channels are suffixes, e.g. `T1w`; its label is the one `dseg` of a
derivative on the scan's own grid, or the one `mask` where there is no `dseg` at all, with names from `dseg.tsv`.
"""

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import CohortError
from pipeline.layouts.found import Found, Wanted, channels_of_config, named_labels, sorted_cases
from pipeline.records import NO_FOLD, Case, Cohort

DESCRIPTION = "dataset_description.json"  # pybids looks into derivatives that have one
EXTENSIONS = [".nii.gz", ".nii"]
DISCRETE, BINARY = "dseg", "mask"  # suffixes of label maps, the first preferred
OWN_SPACES = (None, "orig")  # the entity `space` of a label map that lies on its scan's grid
BY_TABLE = "List the cases in a table and give `cohort:` that, which may point at any file here."

Session = tuple[str, str | None]


@dataclass(frozen=True)
class Scan:
    path: Path
    session: Session
    suffix: str
    entities: Mapping[str, object]


def sign(place: Path) -> str | None:
    """Why this is the layout, or None if it is not."""
    subject = next((path for path in sorted(place.glob("sub-*")) if path.is_dir()), None)
    return f"{subject.name}/ is there" if subject else None


def read(place: Path, wanted: Wanted) -> Found:
    """
    Raises:
        CohortError: scans or labels that are not one for each session, or names that cannot be known.
    """
    if wanted.task == "regression":
        raise CohortError(
            f"{place}: BIDS found, label maps of a segmentation expected, for a regression has none. {BY_TABLE}"
        )
    name, scans, labels, tables = _index(place)
    channels = _channels(place, scans, wanted)
    cohort = Cohort(
        name=name or place.absolute().name,
        layout="BIDS",
        labels=named_labels(place, _label_names(tables, labels), wanted),
        channels=channels,
        ignore_label=wanted.ignore_label,
        regions=dict(wanted.regions),
    )
    by_channel = [
        (suffix, _one_each(scan for scan in scans if scan.suffix.casefold() == suffix.casefold()))
        for suffix in channels.values()
    ]
    label_of = _one_each(labels)
    sessions = sorted({session for _, files in by_channel for session in files}, key=str)
    if lonely := [label_of[session] for session in sorted(set(label_of) - set(sessions), key=str)]:
        raise CohortError(
            f"{lonely[0]}: no {' or '.join(channels.values())} of this session found, one expected. Add it or move the "
            "label map away."
        )
    cases = [
        Case(
            _case_id(session),
            subject=f"sub-{session[0]}",
            fold=NO_FOLD,
            label=label_of.get(session),
            channels=_files(place, session, by_channel),
        )
        for session in sessions
    ]
    return Found(cohort, sorted_cases(place, cases))


def _files(place: Path, session: Session, by_channel: Sequence[tuple[str, Mapping[Session, Path]]]) -> tuple[Path, ...]:
    """One of every channel."""
    if missing := [suffix for suffix, files in by_channel if session not in files]:
        wanted = ", ".join(suffix for suffix, _ in by_channel)
        raise CohortError(
            f"{place}: {_case_id(session)} has no {' and no '.join(missing)}, {wanted} of every session expected. "
            f"Add it, or drop the session: {BY_TABLE[0].lower()}{BY_TABLE[1:]}"
        )
    return tuple(files[session] for _, files in by_channel)


def _case_id(session: Session) -> str:
    subject, name = session
    return f"sub-{subject}_ses-{name}" if name else f"sub-{subject}"


def _index(place: Path) -> tuple[str, list[Scan], list[Scan], list[Path]]:
    """The dataset's name, its scans, the label maps of its derivatives, and the tables that name their labels."""
    from bids.layout import BIDSLayout, BIDSLayoutIndexer  # takes a second: only for who has BIDS

    derivatives = place / "derivatives"
    is_described = any(path for level in (".", "*") for path in derivatives.glob(f"{level}/{DESCRIPTION}"))
    indexer = BIDSLayoutIndexer(validate=False, index_metadata=False)  # names only, whatever BIDS thinks of them
    try:
        layout = BIDSLayout(place, validate=False, derivatives=derivatives if is_described else None, indexer=indexer)
    except ValueError as error:
        found = " ".join(str(error).split())
        raise CohortError(f"{place}: not read by pybids ({found}), a BIDS dataset expected. {BY_TABLE}") from error

    def scans(**query: object) -> list[Scan]:
        found = [(file, file.get_entities()) for file in layout.get(**query)]
        return [
            Scan(
                place / Path(file.path).relative_to(layout.root),
                (str(entities["subject"]), entities.get("session")),
                str(entities["suffix"]),
                entities,
            )
            for file, entities in found
            if {"subject", "suffix"} <= entities.keys()
        ]

    raw = scans(scope="raw", extension=EXTENSIONS)
    for suffix in (DISCRETE, BINARY):
        labels = scans(scope="derivatives", extension=EXTENSIONS, suffix=suffix)
        if labels := [label for label in labels if label.entities.get("space") in OWN_SPACES]:
            break
    else:
        raise CohortError(
            f"{place / 'derivatives'}: no label map found, files that end in _{DISCRETE}.nii.gz or _{BINARY}.nii.gz "
            f"expected, in a folder with a {DESCRIPTION} of its own. {BY_TABLE}"
        )
    tables = [Path(file.path) for file in layout.get(scope="derivatives", suffix=DISCRETE, extension=".tsv")]
    return str((layout.description or {}).get("Name") or ""), raw, labels, sorted(tables)


def _channels(place: Path, scans: Sequence[Scan], wanted: Wanted) -> dict[int, str]:
    """Suffixes by channel: those of config.yaml, or the only one there is."""
    suffixes = sorted({scan.suffix for scan in scans})
    if not wanted.channels and len(suffixes) == 1:
        return {0: suffixes[0]}
    channels = channels_of_config(place, wanted) if wanted.channels else {}
    unknown = [name for name in channels.values() if name.casefold() not in map(str.casefold, suffixes)]
    if unknown or not channels:
        found = f"channels {', '.join(unknown)} of config.yaml" if unknown else f"{len(suffixes)} kinds of scan"
        raise CohortError(
            f"{place}: {found} found, one or several of {', '.join(suffixes) or 'none'} expected. Say which, as in "
            f"`channels: {{0: {next(iter(suffixes), 'T1w')}}}`."
        )
    return channels


def _one_each(scans: Iterable[Scan]) -> dict[Session, Path]:
    """The file of each session."""
    found: dict[Session, list[Path]] = defaultdict(list)
    for scan in scans:
        found[scan.session].append(scan.path)
    for session, paths in found.items():
        if len(paths) > 1:
            names = ", ".join(str(path) for path in sorted(paths))
            raise CohortError(f"{_case_id(session)}: {names} found, one of them expected. {BY_TABLE}")
    return {session: paths[0] for session, paths in found.items()}


def _label_names(tables: Sequence[Path], labels: Sequence[Scan]) -> dict[int, str]:
    """By value, from the tables beside `dseg` files; a mask is 1 and called by its description, if all have the same."""
    if labels[0].suffix == BINARY:
        names = {str(label.entities.get("desc") or BINARY) for label in labels}
        return {1: names.pop() if len(names) == 1 else BINARY}
    found: dict[int, str] = {}
    for table in tables:
        with table.open(newline="", encoding="utf-8-sig") as handle:
            rows = list(csv.DictReader(handle, delimiter="\t"))
        try:
            own = {int(row["index"]): row["name"] for row in rows}
        except (KeyError, ValueError) as error:
            raise CohortError(
                f"{table}: no names of labels found ({error!r}), columns `index`, of whole numbers, and `name` expected. "
                "Correct it."
            ) from error
        if differing := sorted(value for value in own if found.get(value, own[value]) != own[value]):
            value = differing[0]
            raise CohortError(
                f"{table}: label {value} is {own[value]!r}, {found[value]!r} as in another table expected. Correct one of them."
            )
        found |= own
    return found
