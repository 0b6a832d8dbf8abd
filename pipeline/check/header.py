"""Rules on a file's header. Each returns a `Problem` or None; `HEADER_RULES` asks them cheap before dear.

Knows neither files nor voxels.
"""

import logging
import math
from collections.abc import Callable
from typing import TypeAlias

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from pipeline.check.problem import Asked, Problem, not_nifti, refuse
from pipeline.images import EQUAL_MM, LARGEST_SHIFT, MM_PER_UNIT, Grid, affine_mm, is_invertible, right_angled, squeezed

Header: TypeAlias = nib.Nifti1Header  # its subclass Nifti2Header too; as it stands in the file, unrepaired
SPACING_MM = (0.01, 20.0)
BYTES_PER_VOXEL = 16  # of one channel while it is prepared, in float32: as read, normalised, half resampled, resampled
CORRECT = "Correct the header."


def parse_header(block: bytes) -> Header | None:
    """None when it is no NIfTI header. Mends only qfac: anything but -1 means 1, as in every reader."""
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        if kind.may_contain_header(block):
            header = kind(block[: kind.sizeof_hdr], check=False)
            if header["pixdim"][0] != -1:
                header["pixdim"][0] = 1
            return header
    return None


def shape_of(header: Header) -> tuple[int, ...]:
    return tuple(int(size) for size in header.get_data_shape())


def codes_of(header: Header) -> tuple[int, int]:
    """Of the qform and the sform: 0 where it says nothing."""
    return int(header["qform_code"]), int(header["sform_code"])


def grid_of(header: Header) -> Grid:
    """Of each volume, in mm, sheared if the header is."""
    return Grid(shape_of(header)[:3], affine_mm(header))


def grid_as_read(header: Header, asked: Asked) -> Grid:
    """Where later stages find the voxels, of a header without refusals."""
    grid = grid_of(header)
    if is_qform_taken(header, asked) and (qform := grid_of_qform(header)):
        return qform
    square = Grid(grid.shape, right_angled(grid.affine))
    return square if grid.distance_mm(square) > EQUAL_MM else grid


def is_qform_taken(header: Header, asked: Asked) -> bool:
    """Whether the header's two transforms disagree and the user says that the qform is right; nibabel reads the sform."""
    qform = grid_of_qform(header)
    return asked.xform == "qform" and qform is not None and grids_differ(qform, grid_of(header))


def grid_of_qform(header: Header) -> Grid | None:
    """None where only the sform says anything, or neither."""
    qform, _ = header.get_qform(coded=True)
    if qform is None:
        return None
    return Grid(shape_of(header)[:3], np.diag([*[mm_per_unit(header)] * 3, 1.0]) @ qform)


def mm_per_unit(header: Header) -> float:
    return MM_PER_UNIT.get(int(header["xyzt_units"]) % 8, 1.0)


def pixdim_mm(header: Header) -> list[float]:
    return [float(size) * mm_per_unit(header) for size in header["pixdim"][1:4]]


def pair_of_files(header: Header, asked: Asked) -> Problem | None:
    if header["magic"].item().startswith(b"ni"):
        return not_nifti("a header whose voxels are in another file (.hdr, .img)", "Convert it to .nii.gz.")
    return None


def header_invalid(header: Header, asked: Asked) -> Problem | None:
    try:
        header.copy().check_fix(logger=logging.Logger("silent", logging.CRITICAL + 1), error_level=40)
        codes = set(codes_of(header))
        header.get_data_offset()
    except (HeaderDataError, ValueError, OverflowError) as error:
        return refuse("header-invalid", str(error), "a header as NIfTI defines it")
    if not codes <= set(range(6)):
        return refuse("header-invalid", f"qform and sform codes {sorted(codes)}", "codes 0 to 5")
    return None


def voxel_type(header: Header, asked: Asked) -> Problem | None:
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        return refuse("voxel-type", f"{dtype} voxels", "one integer or real number per voxel")
    return None


def not_3d(header: Header, asked: Asked) -> Problem | None:
    """Three axes, and for channels in one file a fourth."""
    shape = shape_of(header)
    found, kept = f"shape {shape}", squeezed(shape)
    if asked.num_volumes > 1:
        if len(kept) != 4 or kept[3] != asked.num_volumes or min(kept) < 1:
            return refuse("not-3d", found, f"three axes and {asked.num_volumes} channels", "Correct `channels`.")
        return None
    if len(kept) != 3 or min(kept) < 1:
        do = "Split the file, or declare its channels."
        return refuse("not-3d", found, "three axes of some voxels", do)
    return Problem("fix", "not-3d", found, "three axes", f"Taken: shape {kept}.") if len(shape) > 3 else None


def single_slice(header: Header, asked: Asked) -> Problem | None:
    shape = shape_of(header)
    if asked.has_3d and min(shape[:3]) == 1:
        do = "Train 2D networks only, `configurations: [2d]`, or drop the case."
        return refuse("single-slice", f"shape {shape}", "several slices for 3D networks", do)
    return None


def scale_invalid(header: Header, asked: Asked) -> Problem | None:
    """Slope 0 or NaN means that the voxels are not scaled; an intercept beside it contradicts that."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    is_scaled = slope != 0 and math.isfinite(slope)
    is_valid = math.isfinite(inter) if is_scaled else inter == 0 or not math.isfinite(inter)
    found = f"slope {slope:g} with intercept {inter:g}"
    return None if is_valid else refuse("scale-invalid", found, "a slope other than 0, a finite intercept")


def pixdim_not_positive(header: Header, asked: Asked) -> Problem | None:
    sizes = [float(size) for size in header["pixdim"][1:4]]
    if not all(size > 0 and math.isfinite(size) for size in sizes):
        return refuse("pixdim-not-positive", f"pixdim {sizes}", "three sizes above 0 mm", CORRECT)
    return None


def unit_not_mm(header: Header, asked: Asked) -> Problem | None:
    """Micron and metre are converted as the file is read; 0, unknown, is taken for mm."""
    unit = int(header["xyzt_units"]) % 8
    if unit in (0, 2):
        return None
    if unit in MM_PER_UNIT:
        sizes = " ".join(f"{size:.4g}" for size in pixdim_mm(header))
        return Problem("fix", "unit-not-mm", {1: "metre", 3: "micron"}[unit], "millimetres", f"Taken: {sizes} mm.")
    return refuse("unit-not-mm", f"unit code {unit}", "millimetres", "Convert the header to millimetres.")


def orientation_unknown(header: Header, asked: Asked) -> Problem | None:
    if codes_of(header) != (0, 0):
        return None
    rule, found, expected = "orientation-unknown", "qform and sform codes are both 0", "one above 0"
    if asked.allow_unknown_orientation:
        do = f"Axes taken for {grid_of(header).orientation}, for `allow_unknown_orientation` is true."
        return Problem("warn", rule, found, expected, do)
    do = (
        "Set the affine, for left and right cannot be told. Where neither matters, as in synthetic data, "
        "`allow_unknown_orientation: true`."
    )
    return refuse(rule, found, expected, do)


def quaternion_invalid(header: Header, asked: Asked) -> Problem | None:
    try:
        header.get_qform(coded=True)
    except (HeaderDataError, ValueError) as error:
        do = "Correct the qform or set its code to 0."
        return refuse("quaternion-invalid", str(error), "a unit quaternion", do)
    return None


def affine_singular(header: Header, asked: Asked) -> Problem | None:
    matrix = affine_mm(header)
    if not is_invertible(matrix):
        rows = "; ".join(" ".join(f"{value:g}" for value in row) for row in matrix[:3])
        return refuse("affine-singular", f"affine {rows}", "finite and invertible", CORRECT)
    return None


def spacing_implausible(header: Header, asked: Asked) -> Problem | None:
    low, high = SPACING_MM
    sizes_mm = [*grid_of(header).spacing_mm, *pixdim_mm(header)]
    if not all(low <= size <= high for size in sizes_mm):
        found = "affine and pixdim of " + " ".join(f"{size:g}" for size in sizes_mm) + " mm"
        return refuse("spacing-implausible", found, f"{low:g} to {high:g} mm", CORRECT)
    return None


def affine_sheared(header: Header, asked: Asked) -> Problem | None:
    grid = grid_of(header)
    return compare("affine-sheared", grid, Grid(grid.shape, right_angled(grid.affine)), "its axes with right angles")


def pixdim_differs(header: Header, asked: Asked) -> Problem | None:
    grid = grid_of(header)
    pixdim = Grid(grid.shape, np.diag([*pixdim_mm(header), 1.0]))
    spacing = Grid(grid.shape, np.diag([*grid.spacing_mm, 1.0]))
    return compare("pixdim-differs", pixdim, spacing, "the spacing of the affine")


def qform_sform_differ(header: Header, asked: Asked) -> Problem | None:
    """ITK reads the qform, nibabel the sform: where they differ, left and right may. The user may say which to take."""
    grid, other = grid_of(header), grid_of_qform(header)
    problem = None if other is None else compare("qform-sform-differ", other, grid, "the sform")
    if problem is None or problem.severity != "refuse":
        return problem
    if asked.xform == "refuse":
        do = "Correct the header, or say which of them is right: `xform: qform` or `xform: sform`."
        return refuse(problem.rule, problem.found, problem.expected, do)
    return Problem(
        "fix", problem.rule, problem.found, problem.expected, f"Taken: the {asked.xform}, for `xform` says so."
    )


def too_large(header: Header, asked: Asked) -> Problem | None:
    """Before a voxel is read, for a damaged header can claim anything."""
    gib = BYTES_PER_VOXEL * math.prod(shape_of(header)) / 2**30
    if gib > asked.scan_gib:
        found = f"shape {shape_of(header)}, {gib:.3g} GiB to prepare"
        do = "Crop the scan, or raise `scan_gib` if there is more memory; drop the case if its header is wrong."
        return refuse("too-large", found, f"at most {asked.scan_gib:g} GiB", do)
    return None


def compare(rule: str, grid: Grid, expected: Grid, name: str) -> Problem | None:
    """The corner rule: how far do the corners of two grids of one file or case lie apart?"""
    apart_mm, limit_mm = grid.distance_mm(expected), LARGEST_SHIFT * min(expected.spacing_mm)
    if apart_mm <= EQUAL_MM:
        return None
    found = f"{apart_mm:.3g} mm apart" if grid.shape == expected.shape else "another shape"
    if not grids_differ(grid, expected):
        return Problem("fix", rule, found, f"{name} within {EQUAL_MM:g} mm", f"Taken: {name}.")
    wanted = f"{name} within {limit_mm:.3g} mm, {described(expected)}"
    return refuse(rule, f"{found}, {described(grid)}", wanted, CORRECT)


def grids_differ(grid: Grid, expected: Grid) -> bool:
    """Further than a tenth of the smallest spacing, or with other axes, which would permute the voxels."""
    limit_mm = LARGEST_SHIFT * min(expected.spacing_mm)
    apart_mm = grid.distance_mm(expected)
    return apart_mm > EQUAL_MM and (apart_mm > limit_mm or grid.orientation != expected.orientation)


def described(grid: Grid) -> str:
    spacing = " ".join(f"{size:.4g}" for size in grid.spacing_mm)
    origin = " ".join(f"{along:.4g}" for along in grid.affine[:3, 3])
    return f"shape {grid.shape} spacing {spacing} mm axes {grid.orientation} first voxel at {origin} mm"


HEADER_RULES: tuple[Callable[[Header, Asked], Problem | None], ...] = (
    pair_of_files,
    header_invalid,
    voxel_type,
    not_3d,
    single_slice,
    scale_invalid,
    pixdim_not_positive,
    unit_not_mm,
    orientation_unknown,
    quaternion_invalid,
    affine_singular,
    spacing_implausible,
    affine_sheared,
    pixdim_differs,
    qform_sform_differ,
    too_large,
)
