"""Resampling of one scan and its label map in a process of its own: a JSON object with the seconds of either on the last line.

The result goes to a file, so that the caller can compare what the systems make of the same case.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import errors, resample
from pipeline.images import Segmentation, Volume

SPACING_MM, TARGET_MM = (2.5, 0.8, 0.8), (1.5, 1.5, 1.5)
Resampling = tuple[Callable[[Volume], Volume], Callable[[Segmentation], Segmentation]]


def main(system: str, case: str, result: str, rounds: int = 3) -> None:
    """`case`: an .npz with image and labels; `result`: one that is written."""
    given = np.load(case)
    shape = resample.resampled_shape(given["image"].shape, SPACING_MM, TARGET_MM)
    of_image, of_labels = {"ours": ours, "spline": sitk_smooth, "linear": sitk_plain}[system](shape)
    image_s, image = timed(of_image, given["image"], rounds)
    labels_s, labels = timed(of_labels, given["labels"], rounds)
    np.savez(result, image=image, labels=labels)
    print(json.dumps({"image_s": image_s, "labels_s": labels_s}))


def timed(work: Callable[[NDArray], NDArray], array: NDArray, rounds: int) -> tuple[float, NDArray]:
    """The fastest of several rounds, in each of which matrices are made anew, and its result."""
    seconds = []
    for _ in range(rounds):
        resample._axis_weights.cache_clear()
        begin = time.perf_counter()
        result = work(array)
        seconds.append(time.perf_counter() - begin)
    return min(seconds), result


def ours(shape: tuple[int, ...]) -> Resampling:
    orders = [resample.interpolation_orders(SPACING_MM, TARGET_MM, order) for order in (3, 1)]
    return (
        lambda image: resample.resample(image, shape, orders[0]),
        lambda labels: resample.resample_labels(labels, shape, orders[1]),
    )


def sitk_smooth(shape: tuple[int, ...]) -> Resampling:
    import SimpleITK as sitk

    return partial(by_sitk, shape, sitk.sitkBSpline), partial(by_sitk, shape, sitk.sitkLabelGaussian)


def sitk_plain(shape: tuple[int, ...]) -> Resampling:
    import SimpleITK as sitk

    return partial(by_sitk, shape, sitk.sitkLinear), partial(by_sitk, shape, sitk.sitkNearestNeighbor)


def by_sitk(shape: tuple[int, ...], interpolator: int, array: NDArray) -> NDArray:
    """Both grids cover the same box, as ours do; SimpleITK's axes run the other way round."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING_MM[::-1])
    spacing = [size * old / new for size, old, new in zip(array.shape, SPACING_MM, shape, strict=True)]
    grid: dict[str, Any] = {
        "size": shape[::-1],
        "outputSpacing": spacing[::-1],
        "outputOrigin": [(new - old) / 2 for new, old in zip(spacing, SPACING_MM, strict=True)][::-1],
        "outputDirection": image.GetDirection(),
    }
    reached = sitk.Resample(image, interpolator=interpolator, useNearestNeighborExtrapolator=True, **grid)
    return sitk.GetArrayFromImage(reached)


def write_case(path: Path) -> None:
    """128 x 256 x 256 voxels of smooth noise as CT values, and eight ellipsoids."""
    from scipy import ndimage

    shape, random = (128, 256, 256), np.random.default_rng(0)
    noise = ndimage.gaussian_filter(random.normal(size=shape).astype(np.float32), 1.5)
    image = 40 + 200 * noise / noise.std()
    labels = np.zeros(shape, np.uint8)
    places = np.stack(np.meshgrid(*(np.linspace(0, 1, size) for size in shape), indexing="ij"), axis=-1)
    for label in range(1, 9):
        centre, radius = random.uniform(0.2, 0.8, 3), random.uniform(0.08, 0.2, 3)
        labels[(((places - centre) / radius) ** 2).sum(axis=-1) < 1] = label
    np.savez(path, image=image.astype(np.float32), labels=labels)


if __name__ == "__main__":
    errors.run(main)
