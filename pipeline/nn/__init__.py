"""Everything that imports torch or MONAI, so that upgrading either touches one folder.

MONAI imports all of itself at once, and optional packages of which nothing here makes use; without those a job starts sooner.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

UNUSED = (  # importing them is over a third of what the start of a job takes
    *("matplotlib", "pandas", "requests", "torch.utils.tensorboard"),
    *("scipy.optimize", "scipy.signal", "scipy.sparse.linalg"),
)


@contextmanager
def hidden(*packages: str) -> Iterator[None]:
    """Meanwhile they are not there for an import, unless they have been imported already."""
    new = [package for package in packages if package not in sys.modules]
    for package in new:
        sys.modules[package] = None  # type: ignore[assignment]  # Python's own way to say that it must not be imported
    try:
        yield
    finally:
        for package in new:
            del sys.modules[package]


with hidden(*UNUSED):
    import monai  # noqa: F401
