"""Which files are scans, and a scan of any format, or one that needs a choice of the user, to a standard copy.

Owner of suffixes. A standard copy is a NIfTI file of three axes in float32 or the source's integers, of the same bytes
whenever it is made; it stays as long as its source and the choices do. Knows no case.
"""

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pipeline import dicom, disk, foreign, pictures, records
from pipeline.check.problem import Problem, Refused, refuse
from pipeline.foreign import Stored
from pipeline.images import EQUAL_MM, UNREADABLE, Grid, is_invertible, right_angled

Kind = Literal["nifti", "nrrd", "metaimage", "mgz", "picture", "stack", "dicom", "unknown"]
Form = Literal["sform", "qform"]  # the two affines of a NIfTI header

SUFFIX_KINDS: dict[str, Kind] = {
    ".nii.gz": "nifti",
    ".nii": "nifti",
    ".nrrd": "nrrd",
    ".nhdr": "nrrd",
    ".mha": "metaimage",
    ".mhd": "metaimage",
    ".mgz": "mgz",
    ".png": "picture",
    ".tif": "picture",
    ".tiff": "picture",
}
SUFFIXES = tuple(SUFFIX_KINDS)


@dataclass(frozen=True)
class Choices:
    """What is decided about a copy.

    It has `channel` of the `num_channels` that the file must hold. `xform` names the affine that counts where the two of a
    NIfTI header differ. `fill` puts the lowest value in place of NaN and -inf, the highest in place of inf. A file that
    claims more than `max_bytes` of voxels is not read.
    """

    channel: int = 0
    num_channels: int = 1
    xform: Form | None = None
    fill: bool = False
    max_bytes: int | None = None


AS_IT_IS = Choices()
NUMBER = re.compile(r"(\d+)")


def split_suffix(name: str) -> tuple[str, str]:
    """`scan.nii.gz` to `scan` and `.nii.gz`; the second is empty where it is none of a scan."""
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)], name[-len(suffix) :]
    return name, ""


def kind_of(path: Path) -> Kind:
    """By name. A folder of nothing but pictures is a stack of slices, any other is expected to hold a DICOM series."""
    if path.is_dir():
        files = _listed(path)
        return "stack" if files and all(kind_of(file) == "picture" for file in files) else "dicom"
    return SUFFIX_KINDS.get(split_suffix(path.name)[1].lower(), "unknown")


def _listed(folder: Path) -> tuple[Path, ...]:
    """What is not hidden, in the order of the numbers in the names: `s2` before `s10`."""
    found = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return tuple(
        sorted(found, key=lambda path: [int(part) if part.isdigit() else part for part in NUMBER.split(path.name)])
    )


def standardise(
    path: Path, target: Path, choices: Choices = AS_IT_IS, *, series: tuple[Path, ...] = ()
) -> list[Problem]:
    """Write the standard copy of `path` to `target`, unless that was done before; what was mended or taken on the way.

    Args:
        path: a file, or the folder of a DICOM series or of pictures.
        series: the files of the series, where the folder holds several.

    Raises:
        Refused: no scan that can be read, or not of so many channels.
    """
    kind = kind_of(path)
    files = series or _files_of(path, kind)
    note = note_of(target)
    origin = {"files": {str(file): records.sha256(file) for file in files}, "choices": asdict(choices)}
    if target.exists() and note.exists() and (known := records.read_json(note))["made_of"] == origin:
        return [Problem(**problem) for problem in known["problems"]]
    for earlier in (note, target):
        earlier.unlink(missing_ok=True)
    if kind == "nifti":
        image, problems = _nifti(path, choices)
    else:
        image, problems = _as_nifti(path, _read(path, kind, files, choices.max_bytes), choices)
    with disk.written_whole(target) as partial:
        nib.save(image, partial)
    records.write_json(note, {"made_of": origin, "problems": [asdict(problem) for problem in problems]})
    return problems


def note_of(target: Path) -> Path:
    """Beside a standard copy, what it was made of and what was mended."""
    return target.with_name(f"{target.name}.json")


def made_of(target: Path) -> dict[Path, str]:
    """The files that a standard copy was made of, with their sha256."""
    return {Path(source): digest for source, digest in records.read_json(note_of(target))["made_of"]["files"].items()}


def _files_of(path: Path, kind: Kind) -> tuple[Path, ...]:
    if kind == "dicom":
        return dicom.only_series(path).files
    if kind == "stack":
        return _listed(path)
    if not path.is_file():
        raise Refused(path, refuse("file-missing", "no file", "a scan", "Correct its path or restore the file."))
    if kind == "unknown":
        do = "Convert it to NIfTI; of DICOM give the folder of the series."
        raise Refused(path, refuse("unknown-format", f"suffix {path.suffix!r}", " ".join(SUFFIXES), do))
    return foreign.files_of(path)


def _read(path: Path, kind: Kind, files: tuple[Path, ...], max_bytes: int | None) -> Stored:
    if kind == "dicom":
        return dicom.read_series(files)
    if kind == "stack":
        return pictures.read_stack(path, files, max_bytes)
    readers = {"picture": pictures.read_picture, "mgz": foreign.read_mgz}
    return readers.get(kind, foreign.read_itk)(path, max_bytes)


def _nifti(path: Path, choices: Choices) -> tuple[nib.Nifti1Image, list[Problem]]:
    """Its header stays as it is, but for the shape, the type of the voxels and the affine that was chosen."""
    try:
        image = nib.load(path)
        voxels, problems = _plain(path, _one_channel(path, image, choices), fill=choices.fill)
        header = image.header.copy()
        header.set_data_dtype(voxels.dtype)
        header.set_slope_inter(1, 0)
        copy = type(image)(voxels, None, header)
        if choices.xform:
            _take_form(path, copy, choices.xform)
    except UNREADABLE as error:
        raise foreign.unreadable(path, error) from error
    return copy, problems


def _one_channel(path: Path, image: nib.Nifti1Image, choices: Choices) -> NDArray:
    """(I, J, K), scaled as the header says; of colours one of the components."""
    further, colours = image.shape[3:], image.get_data_dtype().names
    if sum(size > 1 for size in further) > 1 or (colours and math.prod(further) > 1):
        expected = "three axes and one of channels"
        raise Refused(path, refuse("not-3d", f"shape {image.shape}", expected, "Split or squeeze the file."))
    _refuse_other_number(path, len(colours) if colours else math.prod(further), choices)
    num_bytes = math.prod(image.shape[:3]) * image.get_data_dtype().itemsize
    foreign.refuse_too_large(path, num_bytes, choices.max_bytes)
    space = (slice(None),) * min(len(image.shape), 3)
    voxels = np.asarray(image.dataobj[space + tuple(choices.channel if size > 1 else 0 for size in further)])
    return voxels[colours[choices.channel]] if colours else voxels


def _take_form(path: Path, image: nib.Nifti1Image, form: Form) -> None:
    """Both affines of the header become this one."""
    affine, code = (image.get_sform if form == "sform" else image.get_qform)(coded=True)
    if affine is None:
        do = "Choose the other one for `xform` in config.yaml."
        raise Refused(path, refuse("xform-missing", f"no {form}", f"a {form}, for `xform` is that", do))
    image.set_sform(affine, code)
    image.set_qform(affine, code)


def _as_nifti(path: Path, stored: Stored, choices: Choices) -> tuple[nib.Nifti1Image, list[Problem]]:
    """Both affines say the same; their codes are 0 where the file does not say how the patient lies."""
    if not is_invertible(stored.affine):
        found = f"affine {stored.affine[:3].tolist()}"
        raise Refused(path, refuse("affine-singular", found, "finite and invertible", "Correct the header."))
    _refuse_other_number(path, stored.voxels.shape[3], choices)
    voxels, problems = _plain(path, stored.voxels[..., choices.channel], fill=choices.fill)
    image = nib.Nifti1Image(voxels, stored.affine, dtype=voxels.dtype)
    image.set_sform(stored.affine, int(stored.is_oriented))
    square = Grid(voxels.shape, right_angled(stored.affine))
    if square.distance_mm(Grid(voxels.shape, stored.affine)) <= EQUAL_MM:  # a qform cannot say otherwise
        image.set_qform(stored.affine, int(stored.is_oriented))
    image.header.set_xyzt_units("mm")
    return image, [*stored.problems, *problems]


def _refuse_other_number(path: Path, found: int, choices: Choices) -> None:
    if found != choices.num_channels:
        do = "Declare as many `channels` as it has, or give a file for each: case_0000, case_0001, ..."
        expected = f"{choices.num_channels} as declared"
        raise Refused(path, refuse("channels-differ", f"{found} channels in one file", expected, do))


def _plain(path: Path, voxels: NDArray, *, fill: bool) -> tuple[NDArray, list[Problem]]:
    """Integers in this machine's byte order, or float32."""
    if voxels.dtype.kind not in "iuf":
        raise Refused(path, refuse("voxel-type", f"{voxels.dtype} voxels", "one integer or real number per voxel"))
    if voxels.dtype.kind in "iu":
        return voxels.astype(voxels.dtype.newbyteorder("=")), []
    with np.errstate(over="ignore"):  # infinite for later stages, and for the check
        values = voxels.astype(np.float32)
    is_finite = np.isfinite(values)
    if not fill or is_finite.all():
        return values, []
    found = f"{int((~is_finite).sum())} voxels NaN, infinite or beyond float32"
    if not is_finite.any():
        raise Refused(path, refuse("nonfinite", found, "some finite number"))
    low, high = float(values[is_finite].min()), float(values[is_finite].max())
    do = f"Taken: {low:g}, the lowest value, for NaN and -inf; {high:g}, the highest, for inf."
    filled = np.nan_to_num(values, nan=low, neginf=low, posinf=high)
    return filled, [Problem("fix", "nonfinite", found, "finite numbers", do)]
