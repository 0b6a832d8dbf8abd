"""Scans of other formats than NIfTI to voxels and an affine: NRRD, MetaImage and MGZ.

nibabel reads MGZ, SimpleITK the others, imported only when there is such a file. SimpleITK takes compressed voxels that are
damaged or cut off without a word: here they are looked at before. Writes nothing.
"""

import gzip
import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pipeline.check.problem import Problem, Refused, refuse
from pipeline.errors import CohortError
from pipeline.images import UNREADABLE, Affine

RAS_OF_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
NRRD_SPACE = "NRRD_space"
NRRD_SPACES = ("left-posterior-superior", "right-anterior-superior", "left-anterior-superior")  # that SimpleITK knows
METAIMAGE_DIRECTIONS = ("TransformMatrix", "Orientation", "Rotation")  # names of one field
LOCAL = "LOCAL"  # in a MetaImage: the voxels follow the header
TIFF_ORIENTATION = 274
TIFF_TAGS = (
    256,
    257,
    258,
    262,
    TIFF_ORIENTATION,
    277,
    339,
)  # width, height, bits, colours, ..., samples and their format
CHUNK_BYTES = 1 << 16  # zlib can make a thousand times as much of it
GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
HEADER_BYTES = 1 << 20
MGH_HEADER_BYTES, HAS_DIRECTIONS = 284, slice(28, 30)
CONVERT = "Convert it to NIfTI."


@dataclass(frozen=True)
class Stored:
    """`voxels` (I, J, K, C) as the file has them; `affine` to RAS+ mm.

    `is_oriented`: whether the file says how the patient lies; where it does not, only the affine's spacing means anything.
    """

    voxels: NDArray
    affine: Affine
    is_oriented: bool = True
    problems: list[Problem] = field(default_factory=list)


def simpleitk(found: str) -> ModuleType:
    """
    Raises:
        CohortError: not installed, for all else works without it.
    """
    try:
        import SimpleITK
    except ImportError as error:
        raise CohortError(
            f"{found} found, SimpleITK to read them expected. `pip install simpleitk`, or convert them to NIfTI."
        ) from error
    module: ModuleType = SimpleITK
    return module


def text_header(path: Path) -> tuple[dict[str, str], int]:
    """The lines before the voxels of an NRRD (`key: value`) or MetaImage (`key = value`), and where the voxels begin."""
    separator = "=" if path.suffix.lower() in (".mha", ".mhd") else ":"
    fields: dict[str, str] = {}
    with path.open("rb") as handle:
        while (line := handle.readline(HEADER_BYTES).strip()) and handle.tell() < HEADER_BYTES:
            key, _, value = line.decode("latin-1").partition(separator)
            fields[key.strip()] = value.strip()
            if key.strip() == "ElementDataFile":
                break
        return fields, handle.tell()


def files_of(path: Path) -> tuple[Path, ...]:
    """The file, and the one beside it that a detached header (.mhd, .nhdr) names for its voxels.

    Raises:
        Refused: the voxels are in several files, elsewhere or nowhere.
    """
    if path.suffix.lower() not in (".mhd", ".nhdr"):
        return (path,)
    fields, _ = text_header(path)
    name = fields.get("ElementDataFile") or fields.get("data file") or fields.get("datafile") or LOCAL
    if name == LOCAL:
        return (path,)
    voxels = path.with_name(name) if Path(name).name == name else None
    if voxels is None or not voxels.is_file():
        do = "Restore it, or convert the scan to one file."
        raise Refused(path, refuse("voxels-elsewhere", f"voxels in {name!r}", "one file beside the header", do))
    return (path, voxels)


def read_itk(path: Path, max_bytes: int | None) -> Stored:
    """An NRRD or MetaImage.

    Raises:
        Refused: damaged, larger than `max_bytes` in memory, or of values that are no scan.
    """
    fields, offset = text_header(path)
    claimed, space = look_at(path, max_bytes)
    if fields.get("CompressedData", "").lower() == "true" or fields.get("encoding", "").lower() in ("gz", "gzip"):
        file = files_of(path)[-1]
        _refuse_damaged(path, file, offset if file == path else 0, claimed)
    image = read_image(path)
    is_oriented = space in NRRD_SPACES
    if "ElementDataFile" in fields:  # a MetaImage
        is_oriented = "ElementSpacing" in fields and any(name in fields for name in METAIMAGE_DIRECTIONS)
    return Stored(voxels_of(path, image), _affine(image), is_oriented)


def read_mgz(path: Path, max_bytes: int | None) -> Stored:
    """
    Raises:
        Refused: as `read_itk`.
    """
    try:
        with gzip.open(path, "rb") as handle:
            start = handle.read(MGH_HEADER_BYTES)
            while handle.read(1 << 22):  # to the checksum behind the last voxel
                pass
        if len(start) < MGH_HEADER_BYTES:
            raise EOFError(f"{len(start)} bytes")
        image = nib.load(path)
        refuse_too_large(path, math.prod(image.shape) * image.get_data_dtype().itemsize, max_bytes)
        voxels = np.asarray(image.dataobj)
    except (*UNREADABLE, KeyError) as error:  # the latter for an unknown type of voxels
        raise unreadable(path, error) from error
    return Stored(by_channel(path, voxels), np.asarray(image.affine, np.float64), start[HAS_DIRECTIONS] == b"\0\1")


def by_channel(path: Path, voxels: NDArray) -> NDArray:
    """(I, J, K, C) of an array of two or three axes of space and at most one more, whatever its place.

    Raises:
        Refused: several axes of channels.
    """
    space, further = (*voxels.shape, 1)[:3], voxels.shape[3:]
    if sum(size > 1 for size in further) > 1 or 0 in voxels.shape:
        expected = "three axes and one of channels"
        raise Refused(path, refuse("not-3d", f"shape {voxels.shape}", expected, "Split or squeeze the file."))
    return voxels.reshape(*space, -1)


def refuse_too_large(path: Path, claimed: int, max_bytes: int | None) -> None:
    if max_bytes is not None and claimed > max_bytes:
        found, expected = f"{claimed / 2**30:.3g} GiB of voxels", f"at most {max_bytes / 2**30:.3g} GiB"
        raise Refused(path, refuse("too-large", found, expected, "Crop it, raise the limit or drop the case."))


def unreadable(path: Path, error: Exception) -> Refused:
    found = f"what cannot be read ({_last_line(error) or type(error).__name__})"
    return Refused(path, refuse("unreadable", found, "a file that can be read to its end"))


def look_at(path: Path, max_bytes: int | None) -> tuple[int, str]:
    """Bytes of the voxels as the header claims, and the space of an NRRD, empty if it names none; no voxel is read."""
    toolkit = simpleitk(f"{path.suffix} files")
    reader = toolkit.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise unreadable(path, error) from error
    if reader.GetDimension() not in (2, 3, 4):
        found, expected = f"{reader.GetDimension()} axes", "two or three, and one of channels"
        raise Refused(path, refuse("not-3d", found, expected, "Split or squeeze the file."))
    voxel = toolkit.Image([1] * reader.GetDimension(), reader.GetPixelIDValue(), reader.GetNumberOfComponents())
    dtype = toolkit.GetArrayViewFromImage(voxel).dtype
    if dtype.kind not in "iuf":
        raise Refused(path, refuse("voxel-type", f"{dtype} voxels", "one integer or real number per voxel"))
    claimed = math.prod(reader.GetSize()) * reader.GetNumberOfComponents() * dtype.itemsize
    refuse_too_large(path, claimed, max_bytes)
    return claimed, reader.GetMetaData(NRRD_SPACE) if reader.HasMetaDataKey(NRRD_SPACE) else ""


def read_image(path: Path) -> Any:
    try:
        return simpleitk(f"{path.suffix} files").ReadImage(str(path))
    except RuntimeError as error:
        raise unreadable(path, error) from error


def voxels_of(path: Path, image: Any) -> NDArray:
    array = simpleitk(f"{path.suffix} files").GetArrayFromImage(image)
    axes = image.GetDimension()
    in_order = array.transpose(*reversed(range(axes)), *range(axes, array.ndim))
    return by_channel(path, in_order[:, :, None] if axes == 2 else in_order)


def _affine(image: Any) -> Affine:
    axes = image.GetDimension()
    space = min(axes, 3)
    directions = np.array(image.GetDirection()).reshape(axes, axes)[:space, :space]
    lps = np.eye(4)
    lps[:space, :space] = directions * image.GetSpacing()[:space]
    lps[:space, 3] = image.GetOrigin()[:space]
    return RAS_OF_LPS @ lps


def _refuse_damaged(path: Path, file: Path, offset: int, claimed: int) -> None:
    """Decodes to the checksum, a chunk at a time."""
    stream, num_bytes = zlib.decompressobj(GZIP_OR_ZLIB), 0
    try:
        with file.open("rb") as handle:
            handle.seek(offset)
            while num_bytes <= claimed and not stream.eof and (chunk := handle.read(CHUNK_BYTES)):
                num_bytes += len(stream.decompress(chunk))
    except zlib.error as error:
        raise unreadable(path, error) from error
    if num_bytes != claimed or not stream.eof:
        raise Refused(path, refuse("truncated", f"{num_bytes} bytes of voxels", f"{claimed} as the header says"))


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return " ".join(lines[-1].split()) if lines else ""
