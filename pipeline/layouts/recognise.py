"""Which layout a cohort's folder or table has, and why; the module of that name reads it."""

from collections.abc import Callable
from pathlib import Path

from pipeline.errors import CohortError
from pipeline.layouts import bids, folders, msd, nnunet, table
from pipeline.layouts.found import Found, Wanted

AUTO = "auto"
SIGNS: dict[str, Callable[[Path], str | None]] = {
    "msd": msd.sign,
    "nnunet": nnunet.sign,
    "bids": bids.sign,
    "folders": folders.sign,
    "table": table.sign,
}
READERS: dict[str, Callable[[Path, Wanted], Found]] = {
    "msd": msd.read,
    "nnunet": nnunet.read,
    "bids": bids.read,
    "folders": folders.read,
    "table": table.read,
}


def recognise(place: Path, layout: str) -> tuple[str, str]:
    """The layout, and the reason to think so.

    Args:
        layout: one of the names, or `auto`.

    Raises:
        CohortError: nothing there, no layout that fits, or several.
    """
    if not place.exists():
        raise CohortError(
            f"{place}: no such folder found, a folder of scans, a table (.tsv, .csv) or `demo` expected. Correct `cohort:`."
        )
    if layout != AUTO:
        return layout, "`layout` of config.yaml says so"
    reasons = {name: reason for name, sign in SIGNS.items() if (reason := sign(place))}
    if not reasons:
        found = ", ".join(sorted(path.name for path in place.iterdir())[:5]) if place.is_dir() else place.name
        raise CohortError(
            f"{place}: {found or 'nothing'} found, one of these expected: dataset.json (layouts MSD and nnU-Net), folders sub-* "
            "(BIDS), folders images and labels, or a table (.tsv, .csv). Point `cohort:` at the folder or file that has it."
        )
    if len(reasons) > 1:
        fitting = " and ".join(f"{name} ({reason})" for name, reason in reasons.items())
        raise CohortError(
            f"{place}: layouts {fitting} fit, one expected. Say which it is by a line in config.yaml, as in "
            f"`layout: {next(iter(reasons))}`."
        )
    return next(iter(reasons.items()))
