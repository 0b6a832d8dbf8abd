"""The bytes of a file: what kind it is, one pass over its voxels, and rules on what that pass saw.

Memory: one chunk, whatever the header claims and however large the scan is.
"""

import gzip
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pipeline.check.header import Header, shape_of
from pipeline.check.problem import Asked, Problem, not_nifti, refuse
from pipeline.images import Shape
from pipeline.intensity import ForegroundIntensity, describe
from pipeline.records import BACKGROUND

CHUNK_BYTES = 1 << 22  # a multiple of every voxel size
INTEGER_WITHIN = 1e-3
MAX_VALUES = 1 << 16  # more than any cohort declares: such a file is refused, and need not be counted on
SAMPLES = 1 << 16  # voxels of an image whose intensity is described
MAX_TRAILING_BYTES = 1 << 26  # of a file that goes on and on, for a few kilobytes of gzip can mean gigabytes


@dataclass
class Voxels:
    """What one pass over a file's voxels saw, of its finite ones.

    `counts` by rounded value, and `index_sums`, which are the sums of the indices of a label's voxels along each axis,
    are kept for label maps only; `intensity`, of about `SAMPLES` voxels, for all others.
    """

    num_bytes: int = 0
    num_nonfinite: int = 0
    off_integer: float = 0.0
    counts: Counter[int] = field(default_factory=Counter)
    index_sums: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    intensity: ForegroundIntensity = field(default_factory=lambda: describe(np.empty(0)))


def no_file(path: Path) -> Problem | None:
    """Asks for the kind before it opens, for opening a pipe would wait for ever."""
    if not os.path.exists(path):
        found = "a link to nothing" if path.is_symlink() else "no such file"
        return refuse("file-missing", found, "a NIfTI file", "Correct its path or restore the file.")
    if not path.is_file():
        return not_nifti("a folder" if path.is_dir() else "a pipe or device")
    start = first_bytes(path)
    if start.startswith(b"version https://git-lfs"):
        return not_nifti("a Git LFS pointer", "Fetch the file with `git lfs pull`.")
    if not start:
        return not_nifti("an empty file")
    return None


def first_bytes(path: Path) -> bytes:
    with path.open("rb") as handle:
        return handle.read(64)


def wrong_kind(path: Path) -> Problem | None:
    """A file that cannot be NIfTI, or is not named as what it is."""
    if problem := no_file(path):
        return problem
    if path.suffix.lower() in (".hdr", ".img"):
        do = "Convert it to .nii.gz, for example with nibabel's `nib-convert`."
        return not_nifti("one of a pair of files (.hdr, .img)", do)
    start = first_bytes(path)
    if start.isascii() and b"\0" not in start:
        return not_nifti("a web page" if start.lstrip().startswith(b"<") else "a text file")
    is_gzip, named_gzip = start.startswith(b"\x1f\x8b"), path.suffix.lower() == ".gz"
    if is_gzip and not named_gzip:
        return not_nifti("gzip data", f"Rename it to {path.name}.gz.", "wrong-suffix")
    if named_gzip and not is_gzip:
        do = f"Rename it to {path.stem} if that is what it is."
        return not_nifti("data that is not gzip", do, "wrong-suffix")
    return None


def opened(path: Path) -> BufferedReader | gzip.GzipFile:
    """`path`, decompressed where its name says so. Reading to the end verifies gzip's checksum and length."""
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def read_start(path: Path) -> bytes:
    with opened(path) as handle:
        return handle.read(nib.Nifti2Header.sizeof_hdr)


def claimed_bytes(header: Header) -> int:
    return math.prod(int(size) for size in header.get_data_shape()) * header.get_data_dtype().itemsize


def read_voxels(path: Path, header: Header, asked: Asked) -> Voxels:
    """One pass to the end of the file, chunk by chunk."""
    voxels, dtype = Voxels(), header.get_data_dtype()
    slope, inter = header.get_slope_inter()
    claimed = claimed_bytes(header)
    samples: list[NDArray[np.float64]] = []
    step = claimed // dtype.itemsize // SAMPLES | 1  # odd: one that divides the length of a row would see few columns
    for chunk in chunks(path, header.get_data_offset()):
        start = voxels.num_bytes
        inside = chunk[: max(0, claimed - start)]
        voxels.num_bytes += len(chunk)
        if voxels.num_bytes > claimed + MAX_TRAILING_BYTES:
            break
        values = np.frombuffer(inside, dtype, count=len(inside) // dtype.itemsize)
        if slope is not None and (slope, inter) != (1, 0):
            values = values * slope + inter
        if values.dtype.kind == "f":
            with np.errstate(over="ignore"):  # later stages compute in float32, where these are infinite
                is_finite = np.isfinite(values.astype(np.float32))
            if not is_finite.all():
                voxels.num_nonfinite += int((~is_finite).sum())
                values = np.where(is_finite, values, 0)  # a file with such a voxel is refused, or they are filled so
        if not values.size:
            continue
        first = start // dtype.itemsize
        if asked.declared is None:
            samples.append(values[-first % step :: step].astype(np.float64))
        else:
            count_labels(values, first, shape_of(header)[:3], asked.declared, voxels)
    if samples:
        voxels.intensity = describe(np.concatenate(samples))
    return voxels


def chunks(path: Path, offset: int) -> Iterator[bytes]:
    with opened(path) as handle:
        handle.seek(offset)
        while chunk := handle.read(CHUNK_BYTES):
            yield chunk


def count_labels(values: NDArray, start: int, shape: Shape, declared: Set[int], voxels: Voxels) -> None:
    """`start`: index in the file of the first of these values, which stand as NIfTI has them, the first axis fastest."""
    if values.dtype.kind == "f":
        rounded = np.rint(values)
        voxels.off_integer = max(voxels.off_integer, float(np.abs(values - rounded).max(initial=0)))
        values = rounded
    if len(voxels.counts) > MAX_VALUES:
        return
    if values.dtype.itemsize == 1:
        values = values.astype(np.int16)  # of bytes, `unique` would be ten times slower
    found = Counter(
        {int(value): int(count) for value, count in zip(*np.unique(values, return_counts=True), strict=True)}
    )
    voxels.counts.update(found)
    inside = np.flatnonzero(values)
    labels = values[inside]
    for value in (found.keys() & declared) - {BACKGROUND}:
        indices = np.unravel_index(inside[labels == value] + start, shape, order="F")
        sums = voxels.index_sums.setdefault(value, np.zeros(3))
        sums += [float(along.sum()) for along in indices]


# Rules


def truncated(voxels: Voxels, header: Header, asked: Asked) -> Problem | None:
    claimed = claimed_bytes(header)
    if voxels.num_bytes < claimed:
        return refuse("truncated", f"{voxels.num_bytes} bytes of voxels", f"{claimed} as the header says")
    return None


def trailing_bytes(voxels: Voxels, header: Header, asked: Asked) -> Problem | None:
    claimed = claimed_bytes(header)
    if voxels.num_bytes > claimed + MAX_TRAILING_BYTES:
        found = f"over {MAX_TRAILING_BYTES} bytes after the last voxel"
        return refuse("trailing-bytes", found, f"{claimed} bytes of voxels as the header says")
    if voxels.num_bytes > claimed:
        found = f"{voxels.num_bytes - claimed} bytes after the last voxel"
        do = "They are ignored; is this the right file?"
        return Problem("warn", "trailing-bytes", found, f"{claimed} bytes of voxels", do)
    return None


def nonfinite(voxels: Voxels, header: Header, asked: Asked) -> Problem | None:
    if not voxels.num_nonfinite:
        return None
    found = f"{voxels.num_nonfinite} voxels NaN, infinite or beyond float32"
    if asked.nonfinite == "fill" and asked.declared is None:
        do = "Taken: the lowest value, the highest for inf, for `nonfinite` is `fill`."
        return Problem("fix", "nonfinite", found, "finite numbers", do)
    return refuse("nonfinite", found, "finite numbers", "Fill them, `nonfinite: fill`, or drop the case.")


def label_not_integer(voxels: Voxels, header: Header, asked: Asked) -> Problem | None:
    if voxels.off_integer == 0:
        return None
    found, expected = f"values up to {voxels.off_integer:.3g} from an integer", "integer labels"
    if voxels.off_integer <= INTEGER_WITHIN:
        return Problem("fix", "label-not-integer", found, expected, "Rounded.")
    return refuse("label-not-integer", found, expected, "Store integers, resampled with nearest neighbour.")


def label_undeclared(voxels: Voxels, header: Header, asked: Asked) -> Problem | None:
    if asked.declared is None or not (undeclared := sorted(set(voxels.counts) - asked.declared)):
        return None
    found = ", ".join(f"{value} in {voxels.counts[value]} voxels" for value in undeclared[:10])
    more = f" and {len(undeclared) - 10} more values" if len(undeclared) > 10 else ""
    expected = f"labels {', '.join(map(str, sorted(asked.declared)))}"
    do = "Name it under `labels` in config.yaml or correct the file."
    return refuse("label-undeclared", found + more, expected, do)


def label_empty(voxels: Voxels, header: Header, asked: Asked) -> Problem | None:
    if asked.declared is None or set(voxels.counts) != {BACKGROUND}:
        return None
    do = "It counts as a case without any: is it one?"
    return Problem("warn", "label-empty", "background only", "some label", do)


VOXEL_RULES: tuple[Callable[[Voxels, Header, Asked], Problem | None], ...] = (
    truncated,
    trailing_bytes,
    nonfinite,
    label_not_integer,
    label_undeclared,
    label_empty,
)
