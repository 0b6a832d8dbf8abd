"""Scans and masks on disk, and the axis order of everything else: arrays here are `(I, J, K)` in nibabel order.

Owner of orientation: `read_ras` turns a file into an array whose axes run to the patient's right, front and top;
`write_mask` turns such an array back into the exact grid of its scan. What a header leaves no choice about is mended as it
is read (`grid_in`), and stays as it is in the file. Knows nothing of labels, plans or networks.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from pipeline.disk import written_whole
from pipeline.errors import ImageError

Volume = NDArray[np.float32]  # (I, J, K), or (C, I, J, K) where said
Segmentation = NDArray[np.integer]  # (I, J, K), integer labels, 0 = background
Affine = NDArray[np.float64]  # (4, 4), voxel index to RAS+ millimetres
Spacing = tuple[float, ...]  # mm along I, J, K
Shape = tuple[int, ...]  # voxels along I, J, K

EQUAL_MM = 0.01  # grids whose corners lie this near are equal; up to `LARGEST_SHIFT`, one of them is taken
LARGEST_SHIFT = 0.1  # of the smallest spacing: corners further apart make two files two grids
MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # metre, micron; 2 is mm, and 0, unknown, is nearly always mm
UNREADABLE = (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error)


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a file lie: shape in voxels, affine from voxel index to RAS+ mm."""

    shape: Shape
    affine: Affine

    @property
    def spacing_mm(self) -> Spacing:
        return tuple(float(size) for size in voxel_sizes(self.affine))

    @property
    def orientation(self) -> str:
        return "".join(nib.aff2axcodes(self.affine))

    @property
    def corners_mm(self) -> NDArray[np.float64]:
        """(8, 3): the centres of the corner voxels in RAS+ mm."""
        indices = np.stack(np.meshgrid(*([0, size - 1] for size in self.shape)), axis=-1).reshape(-1, 3)
        return apply_affine(self.affine, indices)

    def distance_mm(self, other: "Grid") -> float:
        """The largest displacement of a corner voxel, mm; infinite when the shapes differ."""
        if self.shape != other.shape:
            return float("inf")
        return float(np.linalg.norm(self.corners_mm - other.corners_mm, axis=1).max())


def open_image(path: Path) -> nib.Nifti1Image:
    """The file's header, with its voxels still on disk.

    Raises:
        ImageError: not a readable NIfTI file of three axes; further axes of one voxel do not count.
    """
    try:
        image = nib.load(path)
    except UNREADABLE as error:
        raise ImageError(f"{path}: cannot be read ({error}). Replace the file or drop the case.") from error
    if not isinstance(image, nib.Nifti1Image):
        raise ImageError(f"{path}: {type(image).__name__} found, NIfTI (.nii, .nii.gz) expected. Convert the file.")
    if len(shape := squeezed(image.shape)) != 3 or 0 in shape:
        raise ImageError(f"{path}: shape {image.shape}, three axes expected. Split or squeeze the file.")
    return image


def squeezed(shape: Sequence[int]) -> Shape:
    """Without axes of one voxel after the third."""
    end = len(shape)
    while end > 3 and shape[end - 1] == 1:
        end -= 1
    return tuple(int(size) for size in shape[:end])


def grid_of(image: nib.Nifti1Image) -> Grid:
    """
    Raises:
        ImageError: an affine that puts the voxels nowhere.
    """
    try:
        return grid_in(image.header)
    except np.linalg.LinAlgError as error:
        raise ImageError(
            f"{image.get_filename()}: affine {image.affine.tolist()}, an invertible one expected. Correct the header."
        ) from error


def grid_in(header: nib.Nifti1Header) -> Grid:
    """What a header says, with the affine in mm, the axes at right angles and no further axes of one voxel.

    Raises:
        LinAlgError: an affine of zeros, or that is not finite.
    """
    grid = Grid(squeezed(header.get_data_shape()), affine_mm(header))
    square = Grid(grid.shape, right_angled(grid.affine))
    return square if grid.distance_mm(square) > EQUAL_MM else grid


def affine_mm(header: nib.Nifti1Header) -> Affine:
    """The affine that the header's codes choose, sheared if it is so there, in mm whatever the header's unit."""
    factor = MM_PER_UNIT.get(int(header["xyzt_units"]) % 8, 1.0)
    return np.diag([factor, factor, factor, 1.0]) @ np.asarray(header.get_best_affine(), np.float64)


def is_invertible(affine: Affine) -> bool:
    """Finite, and with directions that span space."""
    return bool(np.isfinite(affine).all() and np.linalg.cond(affine[:3, :3]) <= 1e6)


def right_angled(affine: Affine) -> Affine:
    """The affine of the same spacing and first voxel whose directions are the nearest rotation (polar decomposition)."""
    spacing_mm = voxel_sizes(affine)
    with np.errstate(divide="ignore", invalid="ignore"):  # svd refuses what is not finite
        left, _, right = np.linalg.svd(affine[:3, :3] / spacing_mm)
    return np.asarray(from_matvec(left @ right * spacing_mm, affine[:3, 3]))


def read_voxels(image: nib.Nifti1Image) -> Volume:
    """(I, J, K) float32 with the header's slope and intercept applied.

    Raises:
        ImageError: truncated or corrupt.
    """
    try:
        voxels = np.asarray(image.get_fdata(dtype=np.float32, caching="unchanged"))
        return voxels.reshape(squeezed(image.shape))
    except UNREADABLE as error:
        raise ImageError(f"{image.get_filename()}: voxels cannot be read ({error}). Replace the file.") from error


def to_ras(array: NDArray, affine: Affine) -> NDArray:
    """`(I, J, K)` with its axes permuted and flipped to run right, anterior, superior as nearly as the grid allows."""
    return np.asarray(apply_orientation(array, io_orientation(affine)))


def from_ras(array: NDArray, affine: Affine) -> NDArray:
    """The inverse of `to_ras` for a file with this affine."""
    orientation = io_orientation(affine)
    flipped = np.flip(array, tuple(axis for axis, flip in enumerate(_flips_in_ras(orientation)) if flip < 0))
    return flipped.transpose(orientation[:, 0].astype(int))


def _flips_in_ras(orientation: NDArray) -> list[float]:
    by_ras_axis = orientation[np.argsort(orientation[:, 0])]
    return [float(flip) for flip in by_ras_axis[:, 1]]


def ras_grid(grid: Grid) -> Grid:
    """The grid of `to_ras(array, grid.affine)`."""
    orientation = io_orientation(grid.affine)
    order = np.argsort(orientation[:, 0])
    return Grid(tuple(grid.shape[axis] for axis in order), grid.affine @ inv_ornt_aff(orientation, grid.shape))


def ras_place(place: NDArray[np.float64], affine: Affine) -> tuple[float, ...]:
    """A place as fractions of the box, 0 to 1 along I, J, K of a file, along the axes of `to_ras(array, affine)`."""
    orientation = io_orientation(affine)
    along = zip(place, orientation, strict=True)
    by_axis = {int(axis): float(part if flip > 0 else 1 - part) for part, (axis, flip) in along}
    return tuple(by_axis[axis] for axis in range(3))


def read_ras(path: Path) -> tuple[Volume, Grid]:
    """A scan in RAS order and its RAS grid.

    Raises:
        ImageError: unreadable, or not three-dimensional.
    """
    image = open_image(path)
    grid = grid_of(image)
    return to_ras(read_voxels(image), grid.affine), ras_grid(grid)


def read_labels_ras(path: Path) -> tuple[NDArray[np.int32], Grid]:
    """A label map in RAS order, rounded to integers, and its RAS grid.

    Raises:
        ImageError: unreadable, or values further than 0.001 from an integer.
    """
    voxels, grid = read_ras(path)
    labels = np.rint(voxels)
    if (off := float(np.abs(voxels - labels).max(initial=0))) > 1e-3 or not np.isfinite(voxels).all():
        raise ImageError(f"{path}: label values up to {off:.3g} from an integer. Store integer labels.")
    return labels.astype(np.int32), grid


def refuse_other_grid(path: Path, grid: Grid, reference: Path, expected: Grid) -> None:
    """
    Raises:
        ImageError: what was predicted does not lie where its reference does.
    """
    if grid.shape != expected.shape:
        raise ImageError(
            f"{path} has shape {grid.shape}, reference {reference} {expected.shape} in RAS order. "
            "Put both on the grid of the scan."
        )
    largest_mm = LARGEST_SHIFT * min(expected.spacing_mm)
    if (shift_mm := grid.distance_mm(expected)) > largest_mm:
        raise ImageError(
            f"{path} lies {shift_mm:.3g} mm off reference {reference}, at most {largest_mm:.3g} mm expected. "
            "Put both on the grid of the scan."
        )


def write_mask(path: Path, mask_ras: Segmentation, scan: Path) -> None:
    """Write `(I, J, K)` labels in RAS order onto the grid of `scan`: same shape and same geometry bytes in the header."""
    _write_like(path, mask_ras, scan, np.min_scalar_type(int(mask_ras.max(initial=0))))


def write_volume(path: Path, volume_ras: Volume, scan: Path) -> None:
    """Write `(I, J, K)` values in RAS order as float32 onto the grid of `scan`, as `write_mask` does labels."""
    _write_like(path, volume_ras, scan, np.dtype(np.float32))


def _write_like(path: Path, array_ras: NDArray, scan: Path, dtype: np.dtype) -> None:
    source = nib.load(scan)
    assert isinstance(source, nib.Nifti1Image)
    array = from_ras(array_ras, grid_of(source).affine)
    assert array.shape == squeezed(source.shape), (array.shape, source.shape)
    header = source.header.copy()
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    with written_whole(path) as partial:
        # no affine: nibabel then leaves every geometry field of the header as it is
        nib.save(type(source)(array.astype(dtype).reshape(source.shape), None, header), partial)
