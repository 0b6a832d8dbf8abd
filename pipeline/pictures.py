"""PNG and TIFF, single or a folder of them, to voxels and an affine, for 2D work and for stacks of slices.

SimpleITK takes a TIFF that lost its last pages without a word, runs for ever where they form a circle, and writes beyond its
memory where they differ in size: here they are looked at before.
"""

import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.check.problem import Problem, Refused, refuse
from pipeline.foreign import CONVERT, RAS_OF_LPS, Stored, look_at, read_image, refuse_too_large, voxels_of

TIFF_ORIENTATION = 274
# what a page is for, its width, height, bits, compression and colours, where its first row is, its samples and their format
TIFF_TAGS = (254, 256, 257, 258, 259, 262, TIFF_ORIENTATION, 277, 284, 339)


def read_picture(path: Path, max_bytes: int | None) -> Stored:
    """A PNG, or a TIFF whose pages are slices; colours are channels. What is up in the picture is anterior, left is right.

    A pixel is 1 mm in any picture, for what they say of their size is the resolution of a printer more often than not, and
    lost in most label maps.

    Raises:
        Refused: as `read_itk`, or a TIFF without all of its pages.
    """
    num_pages = 1 if path.suffix.lower() == ".png" else _refuse_bad_pages(path)
    look_at(path, max_bytes)
    voxels = voxels_of(path, read_image(path))
    if voxels.shape[2] != num_pages:
        found = f"{num_pages} pages, {voxels.shape[2]} that can be read as slices of one size"
        raise Refused(path, refuse("pages-differ", found, "one scan of such slices", CONVERT))
    expected, do = "a spacing in mm", "Taken as 1 mm per pixel: read mm as pixels, or convert it to NIfTI."
    return Stored(voxels, RAS_OF_LPS, problems=[Problem("warn", "no-spacing", "a picture", expected, do)])


def read_stack(folder: Path, pictures: tuple[Path, ...], max_bytes: int | None) -> Stored:
    """Pictures of one size, each a slice.

    Raises:
        Refused: as `read_picture`, or pictures that are no slices of one scan.
    """
    first = read_picture(pictures[0], max_bytes)
    refuse_too_large(folder, first.voxels.nbytes * len(pictures), max_bytes)
    slices = [first.voxels, *(read_picture(picture, max_bytes).voxels for picture in pictures[1:])]
    if shapes := sorted({one.shape for one in slices} - {(*first.voxels.shape[:2], 1, first.voxels.shape[3])}):
        found = f"pictures of shape {shapes[0]} beside {first.voxels.shape}"
        raise Refused(folder, refuse("pages-differ", found, "one page and one size", CONVERT))
    return replace(first, voxels=np.concatenate(slices, axis=2))


def _refuse_bad_pages(path: Path) -> int:
    """The number of pages of a TIFF.

    Raises:
        Refused: a page that is not there, or lies turned; pages of several kinds, which SimpleITK reads as one.
    """
    pages = list(_tiff_pages(path))
    if any(page != pages[0] for page in pages):
        raise Refused(path, refuse("pages-differ", "pages of several sizes or kinds", "one", CONVERT))
    for tag, _, _, value in pages[0] if pages else ():
        if tag == TIFF_ORIENTATION and value.strip(b"\0") != b"\1":
            found, expected = f"orientation {max(value, default=0)}", "1, the first row on top"
            raise Refused(path, refuse("picture-turned", found, expected, "Save the picture upright."))
    return len(pages)


def _tiff_pages(path: Path) -> Iterator[set[tuple[int, int, int, bytes]]]:
    """Of each page what `TIFF_TAGS` say: tag, type, count, and the value, empty where it lies elsewhere.

    Raises:
        Refused: a page outside the file, or in a circle, in which SimpleITK would run for ever.
    """
    num_bytes, seen = path.stat().st_size, set[int]()
    with path.open("rb") as handle:
        start = handle.read(16)
        order = "<" if start.startswith(b"II") else ">"
        is_big = start[2:4] in (b"+\0", b"\0+")  # BigTIFF, for files above 4 GiB
        place_type, count_type, entry_type = (
            order + one for one in (("Q", "Q", "HHQ8s") if is_big else ("I", "H", "HHI4s"))
        )
        try:
            (page,) = struct.unpack_from(place_type, start, 8 if is_big else 4)
            while page:
                if page in seen or page > num_bytes:
                    raise struct.error(f"no page at byte {page}")
                seen.add(page)
                handle.seek(page)
                (num_entries,) = struct.unpack(count_type, handle.read(struct.calcsize(count_type)))
                size = num_entries * struct.calcsize(entry_type)
                if size > num_bytes:
                    raise struct.error(f"{num_entries} entries at byte {page}")
                entries = struct.iter_unpack(entry_type, handle.read(size))
                yield {
                    (tag, kind, count, value if count == 1 else b"")
                    for tag, kind, count, value in entries
                    if tag in TIFF_TAGS
                }
                (page,) = struct.unpack(place_type, handle.read(struct.calcsize(place_type)))
        except struct.error as error:
            found = f"{len(seen)} pages and then the end of the file, at {num_bytes} bytes"
            raise Refused(path, refuse("truncated", found, "all its pages")) from error
