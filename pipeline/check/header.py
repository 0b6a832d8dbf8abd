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

from pipeline.check.problem import Problem, not_nifti, refuse
from pipeline.images import LARGEST_SHIFT, Grid

Header: TypeAlias = nib.Nifti1Header  # its subclass Nifti2Header too; as it stands in the file, unrepaired
EQUAL_MM = 0.01  # grids whose corners lie this near are equal; up to `LARGEST_SHIFT`, one of them is taken
SPACING_MM = (0.01, 20.0)
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


def grid_of(header: Header) -> Grid:
    shape = tuple(int(size) for size in header.get_data_shape())
    return Grid(shape, np.asarray(header.get_best_affine(), np.float64))


def pair_of_files(header: Header) -> Problem | None:
    if header["magic"].item().startswith(b"ni"):
        return not_nifti("a header whose voxels are in another file (.hdr, .img)", "Convert it to .nii.gz.")
    return None


def header_invalid(header: Header) -> Problem | None:
    try:
        header.copy().check_fix(logger=logging.Logger("silent", logging.CRITICAL + 1), error_level=40)
        codes = {int(header["qform_code"]), int(header["sform_code"])}
        header.get_data_offset()
    except (HeaderDataError, ValueError, OverflowError) as error:
        return refuse("header-invalid", str(error), "a header as NIfTI defines it")
    if not codes <= set(range(6)):
        return refuse("header-invalid", f"qform and sform codes {sorted(codes)}", "codes 0 to 5")
    return None


def voxel_type(header: Header) -> Problem | None:
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        return refuse("voxel-type", f"{dtype} voxels", "one integer or real number per voxel")
    return None


def not_3d(header: Header) -> Problem | None:
    shape = tuple(int(size) for size in header.get_data_shape())
    if len(shape) != 3 or min(shape) < 1:
        return refuse("not-3d", f"shape {shape}", "three axes of some voxels", "Split or squeeze the file.")
    return None


def scale_invalid(header: Header) -> Problem | None:
    """Slope 0 or NaN means that the voxels are not scaled; an intercept beside it contradicts that."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    is_scaled = slope != 0 and math.isfinite(slope)
    is_valid = math.isfinite(inter) if is_scaled else inter == 0 or not math.isfinite(inter)
    found = f"slope {slope:g} with intercept {inter:g}"
    return None if is_valid else refuse("scale-invalid", found, "a slope other than 0, a finite intercept")


def pixdim_not_positive(header: Header) -> Problem | None:
    sizes = [float(size) for size in header["pixdim"][1:4]]
    if not all(size > 0 and math.isfinite(size) for size in sizes):
        return refuse("pixdim-not-positive", f"pixdim {sizes}", "three sizes above 0 mm", CORRECT)
    return None


def unit_not_mm(header: Header) -> Problem | None:
    unit = int(header["xyzt_units"]) % 8
    if unit not in (0, 2):
        name = {1: "metre", 3: "micron"}.get(unit, f"unit code {unit}")
        return refuse("unit-not-mm", name, "millimetres", "Convert the header to millimetres.")
    return None


def orientation_unknown(header: Header) -> Problem | None:
    if header["qform_code"] == 0 and header["sform_code"] == 0:
        do = "Set the affine, for left and right cannot be told."
        return refuse("orientation-unknown", "qform and sform codes are both 0", "one above 0", do)
    return None


def quaternion_invalid(header: Header) -> Problem | None:
    try:
        header.get_qform(coded=True)
    except (HeaderDataError, ValueError) as error:
        do = "Correct the qform or set its code to 0."
        return refuse("quaternion-invalid", str(error), "a unit quaternion", do)
    return None


def affine_singular(header: Header) -> Problem | None:
    matrix = np.asarray(header.get_best_affine(), np.float64)
    if not np.isfinite(matrix).all() or np.linalg.cond(matrix[:3, :3]) > 1e6:
        rows = "; ".join(" ".join(f"{value:g}" for value in row) for row in matrix[:3])
        return refuse("affine-singular", f"affine {rows}", "finite and invertible", CORRECT)
    return None


def spacing_implausible(header: Header) -> Problem | None:
    low, high = SPACING_MM
    sizes_mm = [*grid_of(header).spacing_mm, *map(float, header["pixdim"][1:4])]
    if not all(low <= size <= high for size in sizes_mm):
        found = "affine and pixdim of " + " ".join(f"{size:g}" for size in sizes_mm) + " mm"
        return refuse("spacing-implausible", found, f"{low:g} to {high:g} mm", CORRECT)
    return None


def affine_sheared(header: Header) -> Problem | None:
    """Against the nearest affine with right angles, from the polar decomposition of its directions."""
    grid = grid_of(header)
    left, _, right = np.linalg.svd(grid.affine[:3, :3] / grid.spacing_mm)
    square = nib.affines.from_matvec(left @ right * grid.spacing_mm, grid.affine[:3, 3])
    return compare("affine-sheared", grid, Grid(grid.shape, square), "its axes with right angles")


def pixdim_differs(header: Header) -> Problem | None:
    grid = grid_of(header)
    pixdim = Grid(grid.shape, np.diag([*header["pixdim"][1:4].astype(np.float64), 1.0]))
    spacing = Grid(grid.shape, np.diag([*grid.spacing_mm, 1.0]))
    return compare("pixdim-differs", pixdim, spacing, "the spacing of the affine")


def qform_sform_differ(header: Header) -> Problem | None:
    grid, (qform, _) = grid_of(header), header.get_qform(coded=True)
    other = None if qform is None else Grid(grid.shape, qform)
    return None if other is None else compare("qform-sform-differ", other, grid, "the sform")


def compare(rule: str, grid: Grid, expected: Grid, name: str) -> Problem | None:
    """The corner rule: how far do the corners of two grids of one file or case lie apart?"""
    apart_mm, limit_mm = grid.distance_mm(expected), LARGEST_SHIFT * min(expected.spacing_mm)
    if apart_mm <= EQUAL_MM:
        return None
    found = f"{apart_mm:.3g} mm apart" if grid.shape == expected.shape else "another shape"
    wanted = f"{name} within {EQUAL_MM:g} mm"
    if apart_mm <= limit_mm and grid.orientation == expected.orientation:
        return Problem("fix", rule, found, wanted, f"Taken: {name}.")
    wanted = f"{name} within {limit_mm:.3g} mm, {described(expected)}"
    return refuse(rule, f"{found}, {described(grid)}", wanted, CORRECT)


def described(grid: Grid) -> str:
    spacing = " ".join(f"{size:.4g}" for size in grid.spacing_mm)
    origin = " ".join(f"{along:.4g}" for along in grid.affine[:3, 3])
    return f"shape {grid.shape} spacing {spacing} mm axes {grid.orientation} first voxel at {origin} mm"


HEADER_RULES: tuple[Callable[[Header], Problem | None], ...] = (
    pair_of_files,
    header_invalid,
    voxel_type,
    not_3d,
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
)
