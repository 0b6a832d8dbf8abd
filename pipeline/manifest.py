"""The manifest of `check`: which bytes each file had when it was checked, so that a later stage sees that one has changed.

A stage looks at the files of a case just before it reads them, in the process that does.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from pipeline import records
from pipeline.errors import CohortError
from pipeline.formats import made_of
from pipeline.records import Case

CHECK_AGAIN = "Look at it again: `snakemake --cores 8 --forcerun check`."
Made = TypeVar("Made")


def on_unchanged(work: Callable[..., Made], manifest: Path, roles: str, case: Case, *others: object) -> Made:
    """`work(case, *others)`, once its files are known to be those that were checked.

    Args:
        roles: `all` files of the case are read, or only the `label`.

    Raises:
        CohortError: see `refuse_changed`.
    """
    files = [*([] if roles == "label" else case.channels), *filter(None, [case.label])]
    for file in files:
        refuse_changed(file, manifest)
    return work(case, *others)


def refuse_changed(file: Path, manifest: Path) -> None:
    """Of a standard copy, the files that it was made of too.

    Raises:
        CohortError: missing, not among the files that were checked, or of other bytes than then.
    """
    checked = _digests(manifest, manifest.stat().st_mtime_ns)
    if file not in checked:
        raise CohortError(f"{file}: not in {manifest}, a file that was checked expected. {CHECK_AGAIN}")
    digest, is_copy = checked[file]
    for path, expected in {file: digest, **(made_of(file) if is_copy else {})}.items():
        if not path.exists():
            raise CohortError(f"{path}: no such file found, yet it was there when it was checked. {CHECK_AGAIN}")
        if (found := records.sha256(path)) != expected:
            raise CohortError(
                f"{path}: changed since it was checked, sha256 {found[:12]}... found, {expected[:12]}... expected. "
                f"{CHECK_AGAIN}"
            )


@lru_cache(maxsize=1)
def _digests(manifest: Path, mtime_ns: int) -> dict[Path, tuple[str, bool]]:
    """And whether it is a standard copy. Read once by each process, for there is a line for every file of the cohort."""
    return {Path(row["file"]): (row["sha256"], bool(row["source"])) for row in records.read_table(manifest)}
