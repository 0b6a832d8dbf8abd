"""A checked case and a plan to arrays that a network reads: oriented, cropped, resampled, normalised.

`pipeline.restore` is the way back: what leaves through it lies on the voxels that came in. Imports no torch.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import disk, errors, records
from pipeline.bias import evened
from pipeline.images import Segmentation, Shape, Spacing, Volume, read_labels_ras, read_ras, refuse_other_grid
from pipeline.intensity import nonzero_box, normalise
from pipeline.manifest import on_unchanged
from pipeline.paths import Results
from pipeline.plan import RAS_AXES, Plan, edited_note, is_edited, read_plan
from pipeline.processes import map_cases
from pipeline.records import Case
from pipeline.resample import interpolation_orders, resample, resample_labels, resampled_shape

LOCATIONS_PER_LABEL = 5000  # voxels remembered as centres of foreground patches
MADE_OF = "made_of.json"  # beside the arrays of a case: what decided them, and their sha256
RULES = (  # of a plan, besides the intensities that CT is scaled by
    "task",
    "axes",
    "spacing_mm",
    "image_order",
    "normalisation",
    "bias_corrected",
    "labels",
    "ignore_label",
    "target_scale",
    "previous",
)


@dataclass(frozen=True)
class Placement:
    """How a prepared array lies in its scan.

    `shape_ras` and `box` (start, stop per axis) are voxels of the scan in RAS order; `cropped_shape` and `spacing_mm`
    (before resampling) run along the plan's axes, as does the prepared array.
    """

    axes: str
    shape_ras: tuple[int, ...]
    box: tuple[tuple[int, int], ...]
    cropped_shape: tuple[int, ...]
    spacing_mm: Spacing


@dataclass(frozen=True)
class Prepared:
    """`image` (C, D, H, W), `classes` (D, H, W) as indices into the plan's labels, along the plan's axes.

    The index of the plan's ignore label is the one after the last label's. In a regression, `classes` are the values
    divided by the plan's scale. The last channel of a cascade's image is the mask before it, as indices too: one channel
    for any number of labels, of which the network makes a map each.
    """

    image: Volume
    classes: NDArray[np.uint16] | Volume | None
    placement: Placement


def main(results: str, configuration: str, fold: int, code: str = "", threads: int = 1) -> None:
    """`code` stands for the program: arrays that another one made are made again."""
    files = Results(results)
    plan = read_plan(files.plan(configuration))
    if is_edited(files.plan(configuration)):
        print(edited_note(files.plan(configuration)))
    cases = records.cases_of_fold(records.read_cases(files.checked_cases), fold)
    folders = [files.arrays(configuration, case.case) for case in cases]
    if plan.previous:
        records.verify_file_list(files.predicted(plan.previous, fold))
    masks = [files.mask(plan.previous, case.case) if plan.previous else None for case in cases]
    work = partial(on_unchanged, partial(preprocess_case, plan=plan, code=code), files.manifest, "all")
    found = map_cases(work, cases, folders, masks, processes=threads, desc="preprocess")
    made = {path: digest for arrays, _ in found for path, digest in arrays.items()}
    records.write_file_list(files.preprocessed(configuration, fold), made)
    print(f"preprocess: {len(cases)} cases, {sum(is_new for _, is_new in found)} of them new or changed")


def preprocess_case(
    case: Case, folder: Path, previous: Path | None = None, *, plan: Plan, code: str = ""
) -> tuple[dict[Path, str], bool]:
    """See to it that the arrays of one case, each file memory-mappable, are below `folder`, made of what is there now.

    Args:
        previous: the mask that a cascade refines.

    Returns:
        The sha256 of each file, and whether they had to be made.
    """
    sources = {f"image_{index}": path for index, path in enumerate(case.channels)}
    sources |= {role: path for role, path in (("label", case.label), ("previous", previous)) if path}
    made_of = {role: records.sha256(path) for role, path in sources.items()} | {"code": code, "rules": rules_of(plan)}
    if kept := kept_arrays(folder, made_of):
        return kept, False
    channels, spacing_mm = read_channels(case)
    read = read_ras if plan.task == "regression" else read_labels_ras
    labels = read(case.label)[0] if case.label else None
    mask = read_labels_ras(previous)[0] if previous else None
    made = records.digests(save_prepared(prepare(channels, spacing_mm, plan, labels, mask), folder, plan))
    of_names = {path.name: digest for path, digest in made.items()}
    records.write_json(folder / MADE_OF, {"made_of": made_of, "files": of_names}, is_durable=False)
    return made, True


def rules_of(plan: Plan) -> str:
    """What of a plan decides the arrays, as text; a plan that is measured anew has the same."""
    scaled_by = zip(plan.normalisation, plan.foreground_intensity, strict=True)
    intensities = [asdict(foreground) if scheme == "ct" else None for scheme, foreground in scaled_by]
    return json.dumps([*(getattr(plan, rule) for rule in RULES), intensities])


def kept_arrays(folder: Path, made_of: Mapping[str, str]) -> dict[Path, str]:
    """The sha256 of the arrays that are there; none if they were made of something else or are not as they were made."""
    try:
        known = records.read_json(folder / MADE_OF)
    except (FileNotFoundError, ValueError):  # also what a power cut left of it
        return {}
    listed = {folder / name: digest for name, digest in known["files"].items()}
    is_same = known["made_of"] == made_of and all(path.exists() for path in listed)
    return listed if is_same and records.digests(listed) == listed else {}


def read_channels(case: Case) -> tuple[Volume, Spacing]:
    """(C, I, J, K) in RAS order and the spacing in mm.

    Raises:
        ImageError: the channels of the case do not share a grid.
    """
    first, grid = read_ras(case.channels[0])
    if len(case.channels) == 1:
        return first[None], grid.spacing_mm
    channels = np.empty((len(case.channels), *first.shape), np.float32)
    channels[0] = first
    for index, path in enumerate(case.channels[1:], start=1):
        volume, own_grid = read_ras(path)
        refuse_other_grid(path, own_grid, case.channels[0], grid)
        channels[index] = volume
    return channels, grid.spacing_mm


def prepare(
    channels: Volume,
    spacing_mm: Spacing,
    plan: Plan,
    labels: NDArray | None = None,
    previous: Segmentation | None = None,
) -> Prepared:
    """Crop to nonzero, resample to the plan's spacing, normalise.

    Args:
        channels: (C, I, J, K) in RAS order, scan units.
        spacing_mm: of the scan, along its RAS axes.
        labels: (I, J, K) label values, or in a regression any values, in RAS order.
        previous: (I, J, K) label values of the mask that a cascade refines, in RAS order. Resampled as labels are, so
            that it lies where a reference of the same voxels would.
    """
    order = [RAS_AXES.index(axis) for axis in plan.axes]
    box = nonzero_box(channels)
    cropped = channels[(slice(None), *box)].transpose(0, *(axis + 1 for axis in order))
    spacing = tuple(spacing_mm[axis] for axis in order)
    target = tuple(own if wanted is None else wanted for own, wanted in zip(spacing, plan.spacing_mm, strict=True))
    shape = resampled_shape(cropped.shape[1:], spacing, target)
    rules = zip(cropped, plan.normalisation, plan.foreground_intensity, strict=True)
    spline, linear = (interpolation_orders(spacing, target, order=order) for order in (plan.image_order, 1))
    image = np.empty((plan.num_channels, *shape), np.float32)
    for index, (channel, scheme, foreground) in enumerate(rules):  # one at a time, for scans are large
        even = evened(channel, spacing) if index in plan.bias_corrected else channel
        image[index] = resample(normalise(even, scheme, foreground), shape, spline)
    if plan.previous:
        assert previous is not None, plan.configuration
        image[-1] = resample_labels(_label_indices(previous[box].transpose(order), plan), shape, linear)
    placement = Placement(
        axes=plan.axes,
        shape_ras=channels.shape[1:],
        box=tuple((part.start, part.stop) for part in box),
        cropped_shape=cropped.shape[1:],
        spacing_mm=spacing,
    )
    classes: NDArray[np.uint16] | Volume | None = None
    if labels is not None:
        cut = labels[box].transpose(order)
        if plan.task == "regression":
            classes = resample((cut / plan.target_scale).astype(np.float32), shape, linear)
        else:
            classes = resample_labels(_label_indices(cut, plan), shape, linear).astype(np.uint16)
    return Prepared(image, classes, placement)


def prepared_shape(plan: Plan, shape: Shape, spacing_mm: Spacing) -> tuple[Shape, Shape]:
    """Of a crop in RAS order: its shape along the plan's axes, as it is and as prepared."""
    order = [RAS_AXES.index(axis) for axis in plan.axes]
    along, spacing = tuple(shape[axis] for axis in order), tuple(spacing_mm[axis] for axis in order)
    target = tuple(own if wanted is None else wanted for own, wanted in zip(spacing, plan.spacing_mm, strict=True))
    return along, resampled_shape(along, spacing, target)


def _label_indices(labels: Segmentation, plan: Plan) -> NDArray[np.uint16]:
    values = np.array(plan.labels if plan.ignore_label is None else (*plan.labels, plan.ignore_label))
    by_value = np.argsort(values).astype(np.uint16)
    indices = by_value.take(np.searchsorted(values, labels, sorter=by_value), mode="clip")
    assert (values[indices] == labels).all(), "check refuses undeclared labels"
    return indices


def save_prepared(prepared: Prepared, folder: Path, plan: Plan) -> list[Path]:
    arrays: dict[str, NDArray] = {"image": prepared.image}
    if (classes := prepared.classes) is not None:
        if plan.task == "regression":
            labelled = (classes != 0).astype(np.uint16)
        else:
            labelled = np.where(classes == len(plan.labels), records.BACKGROUND, classes)
        arrays |= {"classes": classes, "locations": foreground_locations(labelled)}
    for name, array in arrays.items():
        save_array(folder / f"{name}.npy", array)
    records.write_json(folder / "placement.json", asdict(prepared.placement), is_durable=False)
    return [*(folder / f"{name}.npy" for name in arrays), folder / "placement.json"]


def save_array(path: Path, array: NDArray) -> None:
    """As `np.save` does, which does not say that a disk is full.

    Not flushed: its digest is asked for by all who read it.
    """
    ordered = np.ascontiguousarray(array)
    with disk.written_whole(path, is_durable=False) as partial_path, partial_path.open("wb") as handle:
        np.lib.format.write_array_header_1_0(handle, np.lib.format.header_data_from_array_1_0(ordered))
        handle.write(ordered.data)


def foreground_locations(classes: NDArray[np.uint16]) -> NDArray[np.int32]:
    """(N, 4): class index and voxel of up to 5000 voxels per foreground class, spread evenly; (0, 4) if there is none."""
    places = np.flatnonzero(classes != records.BACKGROUND)
    indices = classes.ravel()[places]
    by_class = np.argsort(indices, kind="stable")
    chosen = [
        members[:: max(1, len(members) // LOCATIONS_PER_LABEL)]
        for members in np.split(by_class, 1 + np.flatnonzero(np.diff(indices[by_class])))
    ]
    kept = np.concatenate(chosen)
    voxels = np.unravel_index(places[kept], classes.shape)
    return np.column_stack([indices[kept], *voxels]).astype(np.int32)


def load_image(folder: Path) -> Volume:
    """(C, D, H, W), mapped; a change would stay in memory, which makes it an array that torch takes."""
    return np.load(folder / "image.npy", mmap_mode="c")


def load_classes(folder: Path) -> NDArray[np.uint16] | Volume:
    """(D, H, W), mapped."""
    return np.load(folder / "classes.npy", mmap_mode="r")


def load_placement(folder: Path) -> Placement:
    content = records.read_json(folder / "placement.json")
    return Placement(
        axes=content["axes"],
        shape_ras=tuple(content["shape_ras"]),
        box=tuple((start, stop) for start, stop in content["box"]),
        cropped_shape=tuple(content["cropped_shape"]),
        spacing_mm=tuple(content["spacing_mm"]),
    )


if __name__ == "__main__":
    errors.run(main)
