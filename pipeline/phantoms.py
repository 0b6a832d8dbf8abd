"""The `demo` cohort: turns a seed into abdomen-like scans with labels, in the layout of the MSD.

A phantom is hard where real scans are hard, so that a broken pipeline fails on it:

- liver and spleen have one intensity and mirrored shapes: only the affine tells right from left;
- the bowel has the intensity of the kidneys and no label: a threshold cannot solve it;
- every case has its own spacing, tilt and one of the 48 array orientations.

Anatomy is defined in RAS+ mm and sampled at voxel centres. Knows nothing of the stages that read it.
"""

from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from pipeline.disk import written_whole
from pipeline.records import write_json

Segmentation = NDArray[np.uint8]  # (I, J, K), 0 = background
Points = NDArray[np.floating]  # (3, I, J, K), RAS+ mm
Affine = NDArray[np.float64]  # (4, 4), voxel to RAS+ mm
Orientation = tuple[tuple[int, ...], tuple[int, ...]]  # patient axis along I, J, K; its sign

MODALITIES = ("CT", "MRI")
LABELS = {"background": 0, "liver": 1, "kidneys": 2, "spleen": 3}

# HU in CT, relative signal in MRI; an organ differs from muscle by 4 times the noise or more.
TISSUES = {
    "air": (-1000.0, 0.0),
    "fat": (-90.0, 1.4),
    "muscle": (40.0, 0.4),
    "bone": (400.0, 0.1),
    "liver": (110.0, 0.7),
    "spleen": (110.0, 0.7),
    "kidneys": (180.0, 1.0),
    "bowel": (180.0, 1.0),
}
TISSUE_NAMES = tuple(TISSUES)
VALUES = {"liver": 60.0, "kidneys": 20.0, "spleen": 40.0}  # of the smooth target; liver and spleen look alike
BLUR_MM = 4.0
LABEL_OF_TISSUE = np.array([LABELS.get(name, 0) for name in TISSUE_NAMES], dtype=np.uint8)
FIELD_OF_VIEW_MM = (91.0, 91.0, 102.0)
LARGEST_TILT_DEG = 12.0
ORIENTATIONS: tuple[Orientation, ...] = tuple(product(permutations(range(3)), product((1, -1), repeat=3)))


@dataclass(frozen=True)
class Ellipsoid:
    """One body part; an infinite radius makes a cylinder, a `variation` of 0 keeps its place and size."""

    tissue: str
    centre_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]
    variation: float = 1.0


# Painted in this order, later over earlier. +x is the patient's right, +y the front, +z the head.
PARTS = (
    Ellipsoid("fat", (0, 0, 0), (42, 34, np.inf), variation=0),
    Ellipsoid("muscle", (0, 0, 0), (38.5, 30.5, np.inf), variation=0),
    Ellipsoid("bone", (0, -20, 0), (7, 7, np.inf), variation=0),
    Ellipsoid("bowel", (0, 16, -22), (13, 10, 17)),
    Ellipsoid("kidneys", (19.5, -7, -22), (12, 12, 17)),
    Ellipsoid("kidneys", (-19.5, -7, -22), (12, 12, 17)),
    Ellipsoid("liver", (19, 2, 18), (14.5, 18.5, 21)),
    Ellipsoid("spleen", (-19, 2, 18), (14.5, 18.5, 21)),
)


def write_cohort(
    folder: Path,
    *,
    num_cases: int = 18,
    seed: int = 0,
    modality: str = "CT",
    size: float = 1.0,
    has_values: bool = False,
) -> None:
    """Write `dataset.json`, `imagesTr/` and `labelsTr/`; the same arguments give the same bytes.

    Case n does not depend on `num_cases`. No case at all gives an empty training list.

    Args:
        modality: "CT" (int16, HU) or "MRI" (float32, a scale and a bias field of its own per case).
        size: factor on the voxels along each axis (1: about 48 x 48 x 24) of the same patient.
        has_values: the target of a regression in place of labels: `smooth_values`, float32.
    """
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    training = []
    for index in range(num_cases):
        image, segmentation, affine = make_case(index, seed=seed, modality=modality, size=size)
        file = f"phantom_{index:03d}.nii.gz"
        _save(image, affine, folder / "imagesTr" / file)
        target = smooth_values(segmentation, affine) if has_values else segmentation
        _save(target, affine, folder / "labelsTr" / file)
        training.append({"image": f"./imagesTr/{file}", "label": f"./labelsTr/{file}"})
    description = {
        "name": f"Phantoms of pipeline/phantoms.py, seed {seed}",
        "modality": {"0": modality},
        **({} if has_values else {"labels": {str(label): name for name, label in LABELS.items()}}),
        "numTraining": num_cases,
        "training": training,
    }
    write_json(folder / "dataset.json", description)


def make_case(
    index: int, *, seed: int = 0, modality: str = "CT", size: float = 1.0
) -> tuple[NDArray[Any], Segmentation, Affine]:
    """Make case `index` of the cohort of `seed`: image `(I, J, K)`, segmentation `(I, J, K)` and affine.

    Raises:
        ValueError: The modality is unknown, or `size` is not positive.
    """
    if modality not in MODALITIES:
        raise ValueError(f"modality: expected one of {', '.join(MODALITIES)}, got {modality!r}")
    if size <= 0:
        raise ValueError(f"size: expected a factor above 0, got {size}")
    rng = np.random.default_rng((seed, index))
    # Drawn without replacement: the first 48 cases of a cohort all have different orientations.
    orientation = np.random.default_rng(seed).permutation(len(ORIENTATIONS))[index % len(ORIENTATIONS)]
    shape, affine = _grid(rng, orientation=ORIENTATIONS[orientation], size=size)
    points = _world_points(shape, affine)
    tissues = _paint(points, rng)
    image = _ct(tissues, rng) if modality == "CT" else _mri(tissues, points, rng)
    return image, LABEL_OF_TISSUE[tissues], affine


def smooth_values(segmentation: Segmentation, affine: Affine) -> NDArray[np.float32]:
    """(I, J, K): a value for each organ, blurred by a Gaussian of 4 mm; like a dose, it is 0 away from them."""
    values = np.zeros(len(LABELS), dtype=np.float32)
    for name, value in VALUES.items():
        values[LABELS[name]] = value
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    return np.asarray(ndimage.gaussian_filter(values[segmentation], BLUR_MM / spacing_mm), dtype=np.float32)


def _grid(rng: np.random.Generator, *, orientation: Orientation, size: float) -> tuple[tuple[int, ...], Affine]:
    """Draw shape (voxels) and affine of a tilted grid, its axes permuted and flipped to `orientation`."""
    in_plane_mm, through_plane_mm = rng.uniform((1.6, 3.5), (2.2, 5.0)) / size
    axes, signs = map(list, orientation)
    spacing_mm = np.array([in_plane_mm, in_plane_mm, through_plane_mm])[axes]
    shape = np.maximum(1, np.rint(np.array(FIELD_OF_VIEW_MM)[axes] / spacing_mm)).astype(int)
    tilt = Rotation.from_rotvec(rng.uniform(0, LARGEST_TILT_DEG) * _direction(rng), degrees=True)
    affine = np.eye(4)
    affine[:3, :3] = tilt.as_matrix()[:, axes] * signs * spacing_mm
    affine[:3, 3] = -affine[:3, :3] @ ((shape - 1) / 2)  # centred on the patient
    return tuple(shape.tolist()), affine


def _direction(rng: np.random.Generator) -> NDArray[np.float64]:
    vector = rng.normal(size=3)
    return np.asarray(vector / np.linalg.norm(vector))


def _world_points(shape: tuple[int, ...], affine: Affine) -> Points:
    """Position of every voxel centre, `(3, I, J, K)`, RAS+ mm."""
    i, j, k = np.ogrid[: shape[0], : shape[1], : shape[2]]
    return np.stack([row[0] * i + row[1] * j + row[2] * k + row[3] for row in affine[:3]]).astype(np.float32)


def _paint(points: Points, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Index into `TISSUE_NAMES` of every voxel, `(I, J, K)`, of a patient of its own size and shape."""
    warp_mm = [2 * _smooth_field(points, rng, wavelength_mm=80) for _ in range(3)]
    points = (points + np.stack(warp_mm)) / np.float32(rng.uniform(0.95, 1.05))
    tissues = np.zeros(points.shape[1:], dtype=np.uint8)
    for part in PARTS:
        centre_mm = np.array(part.centre_mm) + part.variation * rng.uniform(-2.5, 2.5, size=3)
        radii_mm = np.array(part.radii_mm) * (1 + part.variation * rng.uniform(-0.08, 0.1, size=3))
        axes = zip(points, centre_mm, radii_mm, strict=True)
        tissues[sum(((along - c) / r) ** 2 for along, c, r in axes) < 1] = TISSUE_NAMES.index(part.tissue)
    return tissues


def _smooth_field(points: Points, rng: np.random.Generator, *, wavelength_mm: float) -> NDArray[np.floating]:
    """Sum of four plane waves in random directions, `(I, J, K)`, of unit variance."""
    field = np.zeros(points.shape[1:], dtype=np.float32)
    for _ in range(4):
        wave = _direction(rng) * 2 * np.pi / (wavelength_mm * rng.uniform(0.7, 1.4))
        phase = np.float32(rng.uniform(0, 2 * np.pi))
        field += np.sin(np.tensordot(wave.astype(np.float32), points, axes=1) + phase)
    return field / np.float32(np.sqrt(2))


def _ct(tissues: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.int16]:
    """HU with white noise."""
    noise = rng.uniform(13, 16) * rng.standard_normal(tissues.shape, dtype=np.float32)
    image = _intensities(0, spread=6.0, rng=rng)[tissues] + noise
    return np.asarray(np.rint(np.clip(image, -1024, 3071)), dtype=np.int16)


def _mri(tissues: NDArray[np.uint8], points: Points, rng: np.random.Generator) -> NDArray[np.float32]:
    """Signal under a bias field, with Rician noise, in arbitrary units of the case."""
    bias = np.exp(0.08 * _smooth_field(points, rng, wavelength_mm=160))
    signal = np.abs(_intensities(1, spread=0.02, rng=rng))[tissues] * bias
    noise = rng.uniform(0.055, 0.07) * rng.standard_normal((2, *tissues.shape), dtype=np.float32)
    scale = np.exp(rng.uniform(np.log(50), np.log(3000)))
    return np.asarray(scale * np.hypot(signal + noise[0], noise[1]), dtype=np.float32)


def _intensities(column: int, *, spread: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Intensity of each tissue in this case; bowel stays exactly like kidneys."""
    table = np.array([TISSUES[name][column] for name in TISSUE_NAMES], dtype=np.float32)
    table[1:] += rng.uniform(-spread, spread, size=len(table) - 1).astype(np.float32)
    table[TISSUE_NAMES.index("bowel")] = table[TISSUE_NAMES.index("kidneys")]
    return table


def _save(array: NDArray[Any], affine: Affine, path: Path) -> None:
    """Write NIfTI with agreeing sform and qform; nibabel's gzip header holds neither time nor file name."""
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    with written_whole(path) as partial:
        nib.save(image, partial)
