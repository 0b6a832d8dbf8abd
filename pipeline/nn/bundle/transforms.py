"""The steps of a bundle that MONAI's transforms lack: intensities and grids as in training, and the run from scan to mask.

Lies in every bundle as `scripts/transforms.py`, a copy: it imports nothing of the project that trained the networks.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils.enums import TraceKeys
from numpy.typing import NDArray
from scipy import ndimage
from torch.export.passes import move_to_device_pass

NIFTI = re.compile(r"(?P<name>.+?)\.nii(\.gz)?$")
SMALLEST_STD = 1e-8
NEGLIGIBLE = 1e-8  # of a sample's weight
ANISOTROPY = 3.0  # above this ratio of spacings the coarse axis is not interpolated: a spline would invent its slices

Case = dict[str, Any]


def find_cases(folder: str, num_channels: int) -> list[Case]:
    """Every NIfTI file of a folder; or `case_0000`, `case_0001`, … together where the network reads several channels.

    Raises:
        ValueError: no file, two with the same name, or a case without all its channels.
    """
    found = [(match["name"], path) for path in sorted(Path(folder).glob("*")) if (match := NIFTI.match(path.name))]
    files = dict(found)
    if not files:
        raise ValueError(f"{folder}: no NIfTI file (.nii, .nii.gz) there. Give the folder of the scans as dataset_dir.")
    if len(files) < len(found):
        raise ValueError(f"{folder}: {len(found)} files with {len(files)} names. Keep one of .nii and .nii.gz.")
    if num_channels == 1:
        return [{"image": [str(path)]} for path in files.values()]
    cases = []
    for case in dict.fromkeys(re.sub(r"_\d{4}$", "", name) for name in files):
        expected = [f"{case}_{channel:04d}" for channel in range(num_channels)]
        if lacking := [name for name in expected if name not in files]:
            raise ValueError(f"{case}: {', '.join(lacking)} missing in {folder}: one file per channel expected.")
        cases.append({"image": [str(files[name]) for name in expected]})
    return cases


def load_program(path: str, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """(B, C, …) of one patch to (B, L, …): the mean over the folds of probabilities, or of values in a regression."""
    return move_to_device_pass(torch.export.load(path), device).module()


class Normalised(MapTransform):
    """Every channel of (C, …) by the rule that it had in training.

    Args:
        channels: for each of them the arguments of `normalise`.
    """

    def __init__(self, keys: Any, channels: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(keys)
        self.channels = channels

    def __call__(self, data: Mapping[Any, Any]) -> Case:
        case = dict(data)
        for key in self.key_iterator(case):
            pairs = zip(case[key].array, self.channels, strict=True)
            case[key] = _with_meta_of(case[key], np.stack([normalise(channel, **rule) for channel, rule in pairs]))
        return case


class Resampled(MapTransform, InvertibleTransform):
    """(C, D, H, W) to the spacing of training by a spline; its inverse is linear. Both grids cover the same box.

    Args:
        spacing_mm: along each axis; None keeps the scan's own.
        order: of the spline; 3 is a cubic one.
    """

    def __init__(self, keys: Any, spacing_mm: Sequence[float | None], order: int) -> None:
        super().__init__(keys)
        self.spacing_mm, self.order = spacing_mm, order

    def __call__(self, data: Mapping[Any, Any]) -> Case:
        case = dict(data)
        for key in self.key_iterator(case):
            image = case[key]
            shape, affine = tuple(image.shape[1:]), image.affine.clone()
            spacing = np.linalg.norm(affine.numpy()[:3, :3], axis=0).tolist()
            target = [own if wanted is None else wanted for own, wanted in zip(spacing, self.spacing_mm, strict=True)]
            sizes = zip(shape, spacing, target, strict=True)
            new_shape = [max(1, round(size * old / new)) for size, old, new in sizes]
            resampled = resample(image.array, new_shape, interpolation_orders(spacing, target, self.order))
            case[key] = self.push_transform(
                _with_meta_of(image, resampled),
                affine=torch.from_numpy(_zoom_affine(shape, new_shape)),
                orig_size=shape,
                extra_info={"affine": affine, "spacing_mm": spacing},
            )
        return case

    def inverse(self, data: Mapping[Any, Any]) -> Case:
        case = dict(data)
        for key in self.key_iterator(case):
            prediction = case[key]
            applied = self.pop_transform(prediction)
            shape, before = applied[TraceKeys.ORIG_SIZE], applied[TraceKeys.EXTRA_INFO]
            sizes = zip(before["spacing_mm"], shape, prediction.shape[1:], strict=True)
            zoomed = [spacing * old / new for spacing, old, new in sizes]
            restored = resample(prediction.array, shape, interpolation_orders(zoomed, before["spacing_mm"], order=1))
            case[key] = _with_meta_of(prediction, restored)
            case[key].affine = before["affine"]
        return case


class Painted(MapTransform):
    """(R, …) probabilities of regions that may overlap to (1, …): the value of the last region of more than 0.5, else 0."""

    def __init__(self, keys: Any, values: Sequence[int]) -> None:
        super().__init__(keys)
        self.values = values

    def __call__(self, data: Mapping[Any, Any]) -> Case:
        case = dict(data)
        for key in self.key_iterator(case):
            probabilities = case[key].array
            painted = np.zeros((1, *probabilities.shape[1:]), np.float32)
            for region, value in zip(probabilities, self.values, strict=True):
                painted[0, region > 0.5] = value
            case[key] = _with_meta_of(case[key], painted)
        return case


class Evaluator:
    """Takes every scan of a dataset through network and postprocessing, which writes its mask."""

    def __init__(
        self,
        dataset: Iterable[Case],
        network: Callable[[torch.Tensor], torch.Tensor],
        inferer: Callable[[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]], torch.Tensor],
        postprocessing: Callable[[Case], Case],
    ) -> None:
        self.dataset, self.network, self.inferer, self.postprocessing = dataset, network, inferer, postprocessing

    def run(self) -> None:
        for case in self.dataset:
            image = case["image"]
            print(image.meta["filename_or_obj"], flush=True)
            with torch.inference_mode():
                prediction = self.inferer(image.as_tensor()[None], self.network)[0]
            self.postprocessing({**case, "pred": MetaTensor(prediction)})


def normalise(
    channel: NDArray, scheme: str, low: float = 0.0, high: float = 0.0, mean: float = 0.0, std: float = 1.0
) -> NDArray:
    """(I, J, K) in scan units to what the networks saw; a constant channel gives zeros, except from `none` and `ct`.

    `ct`: clipped to `low` and `high`, then with the cohort's mean and standard deviation. `zscore`: with its own;
    `zscore_nonzero`: with its own over nonzero voxels, zero elsewhere. `rescale`: 0 to 1; `percentile`: the same, between
    percentiles 0.5 and 99.5. `none`: as it is.
    """
    if scheme == "none":
        return channel
    if scheme in ("rescale", "percentile"):
        smallest, largest = np.percentile(channel, (0, 100) if scheme == "rescale" else (0.5, 99.5))
        return (np.clip(channel, smallest, largest) - smallest) / max(largest - smallest, SMALLEST_STD)
    if scheme == "ct":
        return (np.clip(channel, low, high) - mean) / max(std, SMALLEST_STD)
    inside = channel != 0 if scheme == "zscore_nonzero" else np.ones(channel.shape, dtype=bool)
    values = channel[inside]
    if values.size == 0:
        return np.zeros_like(channel)
    return np.where(inside, (channel - values.mean()) / max(float(values.std()), SMALLEST_STD), 0)


def interpolation_orders(spacing_mm: Sequence[float], target_spacing_mm: Sequence[float], order: int) -> list[int]:
    """Spline order per axis: 0, the nearest voxel, along the single coarse axis of an anisotropic grid."""
    for spacing in (spacing_mm, target_spacing_mm):
        if max(spacing) / min(spacing) > ANISOTROPY:
            coarse = [size == max(spacing) for size in spacing]
            return [0 if is_coarse and sum(coarse) == 1 else order for is_coarse in coarse]
    return [order] * len(spacing_mm)


def resample(array: NDArray, shape: Sequence[int], orders: Sequence[int]) -> NDArray:
    """(C, I, J, K) to another number of voxels in the same box, axis by axis: a spline is linear in its samples."""
    for axis, (size, order) in enumerate(zip(shape, orders, strict=True), start=1):
        if (old := array.shape[axis]) != size:
            weights = ndimage.zoom(np.eye(old), (size / old, 1), order=order, mode="nearest", grid_mode=True)
            weights[np.abs(weights) < NEGLIGIBLE] = 0  # too small for a float32 in full, which makes processors slow
            product = np.tensordot(weights.astype(np.float32), array, axes=(1, axis))
            array = np.moveaxis(product, 0, axis)
    return array


def _zoom_affine(shape: Sequence[int], new_shape: Sequence[int]) -> NDArray[np.float64]:
    """(4, 4) from a voxel of the new grid to the old one in the same box."""
    factors = np.array(shape) / np.array(new_shape)
    affine = np.diag([*factors, 1.0])
    affine[:3, 3] = (factors - 1) / 2
    return affine


def _with_meta_of(image: MetaTensor, array: NDArray) -> MetaTensor:
    voxels = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    return MetaTensor(voxels, meta=image.meta, applied_operations=image.applied_operations)
