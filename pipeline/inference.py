"""How scans are cut for prediction: the fastest setting that costs no accuracy on held-out cases of one fold.

With `inference: reference` nothing is measured: windows of the training's patch, half overlapping, and all mirrored copies.
"""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil, inf
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline import errors, records
from pipeline.architectures import ARCHITECTURES
from pipeline.images import Volume
from pipeline.mirrors import Mirror, find_mirrors
from pipeline.nn.checkpoints import Model, load_model
from pipeline.nn.device import Device, pick_device
from pipeline.nn.outputs import count_voxels
from pipeline.nn.sliding import predict_slabs
from pipeline.paths import Results
from pipeline.plan import Plan
from pipeline.preprocess import load_classes, load_image, prepared_shape
from pipeline.records import Case
from pipeline.windows import Setting, num_at_once, num_voxels, places, predict_bytes, window_of

TOLERANCE = 0.001  # of the DSC, or of the relative error of a regression, that a faster setting may lose
REFERENCE_OVERLAP, SMALL_OVERLAP = 0.5, 0.25
LARGE_WINDOW = 2  # patches along each axis
MOST_CASES = 8
LONG_COHORT_S = 600.0  # of predicting all cases, from which on the compiler is tried
LONG_ENOUGH_S = 60.0  # of measuring; the case that is being measured is finished


@dataclass(frozen=True)
class Tried:
    """`score` is the mean DSC, or one minus the relative error of a regression; seconds and voxels are of all cases."""

    setting: Setting
    score: float
    seconds: float
    voxels: int
    num_cases: int


def main(
    results: str,
    configuration: str,
    fold: int,
    settings: str,
    device: str = "auto",
    threads: int = 1,
) -> None:
    files, wanted = Results(results), json.loads(settings)
    torch.set_num_threads(threads)
    processor = pick_device(device)
    model = load_model(files.model(configuration, fold), processor.where)
    mirrors = find_mirrors(model.plan, wanted["train_mirror"])
    is_fixed = ARCHITECTURES[model.plan.network].has_fixed_patch
    offered = candidates(wanted, has_mirrors=bool(mirrors), is_fixed=is_fixed)
    cases = [case for case in records.cases_of_fold(records.read_cases(files.checked_cases), fold) if case.label]
    tried = []
    if len(offered) > 1:
        folders = [files.arrays(configuration, case.case) for case in spread(cases, MOST_CASES)]
        arrays = [(load_image(folder), load_classes(folder)) for folder in folders]
        enough_s = inf if wanted["deterministic"] else LONG_ENOUGH_S
        tried = measure(model, arrays, offered, mirrors, processor, wanted["memory_gib"], enough_s=enough_s)
    chosen, reason = choose(offered, tried, is_deterministic=wanted["deterministic"])
    if wanted["compile"] is True:
        chosen = replace(chosen, compile_s=0.0, saved_s=1.0)
    elif wanted["compile"] == "auto" and not wanted["deterministic"]:
        seconds_per_case = next((row.seconds / row.num_cases for row in tried if row.setting == chosen), 0.0)
        num_cases = len(records.read_cases(files.checked_cases))
        if chosen.window is not None and seconds_per_case * num_cases > LONG_COHORT_S:
            chosen = with_compiler(chosen, model, processor, seconds_per_case)
    scans = records.read_json(files.fingerprint)["cases"]
    content = {
        **asdict(chosen),
        "reason": reason,
        "mem_mb": memory_mb(model.plan, model.width, chosen, scans, wanted["memory_gib"]),
        "fold": fold,
        "device": str(processor),
        "tried": [as_row(one) for one in tried],
    }
    records.write_json(files.inference(configuration), content)
    print(f"{configuration}: {describe(chosen)}: {reason}")


def with_compiler(setting: Setting, model: Model, device: Device, seconds_per_case: float) -> Setting:
    """Time both forms on one window; as it was where the compiler fails or gains nothing."""
    plan, factor = model.plan, setting.window or 1
    slices = () if plan.dims == 3 else (num_at_once(plan.patch_size, device.where.type),)
    window = window_of(setting, plan, model.width, (*slices, *(ceil(factor * edge) for edge in plan.patch_size)), (), 8)
    image = np.zeros((len(plan.channels) + bool(plan.previous), *slices, *window.size), np.float32)

    def seconds(*, is_compiled: bool) -> float:
        begin = time.perf_counter()
        for _ in predict_slabs([model], image, device, replace(window, is_compiled=is_compiled)):
            pass
        return time.perf_counter() - begin

    try:
        first, *compiled = (seconds(is_compiled=True) for _ in range(4))
    except Exception as error:  # the compiler fails in many ways where it lacks a C++ compiler or Triton
        print(f"compiler: not possible here: {str(error).partition(chr(10))[0] or repr(error)}")
        return setting
    plain = min(seconds(is_compiled=False) for _ in range(4))
    share = 1 - min(compiled) / plain
    print(f"compiler: {plain:.3f} s per window, compiled {min(compiled):.3f} s, after {first:.0f} s")
    return replace(setting, compile_s=first - min(compiled), saved_s=share * seconds_per_case) if share > 0 else setting


def memory_mb(plan: Plan, width: int, setting: Setting, cases: Sequence[dict[str, Any]], memory_gib: float) -> int:
    """MiB that predicting the largest case takes, by its row in the fingerprint."""
    needed = []
    for case in cases:
        cropped, shape = prepared_shape(plan, case["shape_nonzero"], case["spacing_mm"])
        needed.append(predict_bytes(plan, width, setting, shape, cropped, memory_gib))
    return ceil(max(needed) / 2**20)


def as_row(tried: Tried) -> dict[str, Any]:
    """For the record and the report."""
    score = None if np.isnan(tried.score) else round(tried.score, 5)
    figures = {"score": score, "seconds": round(tried.seconds, 3), "voxels": tried.voxels}
    return {"name": describe(tried.setting), **asdict(tried.setting), **figures}


def candidates(wanted: dict[str, Any], *, has_mirrors: bool, is_fixed: bool) -> list[Setting]:
    """The reference first, with what the user set; then what may be faster.

    Args:
        is_fixed: the network takes no other window than its patch.
    """
    offered = [Setting(1, REFERENCE_OVERLAP, has_mirrors)]
    if wanted["inference"] == "auto":
        windows: list[float | None] = [1] if is_fixed else [1, LARGE_WINDOW, None]
        offered += [Setting(1, REFERENCE_OVERLAP, mirror=False)]
        offered += [Setting(window, SMALL_OVERLAP, mirror=False) for window in windows]
    fixed = {key: wanted[key] for key in ("window", "overlap", "mirror", "batch") if key in wanted}
    if "mirror" in fixed:
        fixed["mirror"] = fixed["mirror"] and has_mirrors
    return list(dict.fromkeys(replace(setting, **fixed) for setting in offered))


def spread(cases: Sequence[Case], count: int) -> list[Case]:
    """At most `count` of them, evenly."""
    return [cases[index * len(cases) // count] for index in range(count)] if len(cases) > count else list(cases)


def measure(
    model: Model,
    cases: Sequence[tuple[Volume, NDArray]],
    offered: Sequence[Setting],
    mirrors: Sequence[Mirror],
    device: Device,
    memory_gib: float,
    *,
    enough_s: float = LONG_ENOUGH_S,
) -> list[Tried]:
    """Every setting on the same cases, as many as there is time for; of settings that cut all cases alike, the first."""
    shapes = [image.shape[1:] for image, _ in cases]
    windows = {
        setting: [window_of(setting, model.plan, model.width, shape, mirrors, memory_gib) for shape in shapes]
        for setting in offered
    }
    first_of: dict[str, Setting] = {}
    for setting, of_cases in windows.items():
        cuts = [
            (one.size, one.mirrors, places(one, model.plan, shape)) for one, shape in zip(of_cases, shapes, strict=True)
        ]
        first_of.setdefault(repr(cuts), setting)
    found: dict[Setting, list[tuple[float, float, int]]] = {setting: [] for setting in first_of.values()}
    begin = time.perf_counter()
    for index, (image, classes) in enumerate(tqdm(cases, desc="inference", mininterval=5)):
        for setting, figures in found.items():
            window = windows[setting][index]
            for _ in range(1 if figures else 2):  # the first time for nothing: first calls are slow
                start = time.perf_counter()
                score = score_slabs(predict_slabs([model], image, device, window), classes, model.plan)
                seconds = time.perf_counter() - start
            figures.append((score, seconds, num_voxels(window, model.plan, image.shape[1:])))
        if time.perf_counter() - begin > enough_s:
            break
    return [
        Tried(setting, float(np.nanmean(scores)), sum(seconds), sum(voxels), len(scores))
        for setting, figures in found.items()
        for scores, seconds, voxels in [tuple(zip(*figures, strict=True))]
        if figures
    ]


def score_slabs(slabs: Iterable[NDArray[np.float32]], classes: NDArray, plan: Plan) -> float:
    """On the prepared grid: mean DSC of the labels or regions that are in either mask, NaN if none is.

    In a regression one minus the mean absolute error, in parts of the reference's mean absolute value.
    """
    row, counts = 0, np.zeros((3, plan.num_outputs))
    error = size = 0.0
    for slab in slabs:
        part, row = classes[row : row + slab.shape[1]], row + slab.shape[1]
        if plan.task == "regression":
            error += float(np.abs(slab[0] - part).sum())
            size += float(np.abs(part).sum())
        else:
            reference = torch.from_numpy(part.astype(np.int32))[None, None]
            maps = torch.from_numpy(slab - np.float32(0.5))[None]  # regions of more than one half are found
            counts += count_voxels(maps, reference, plan)
    if plan.task == "regression":
        return 1 - error / size if size else float("nan")
    right, found, wanted = counts[:, 1:] if plan.has_background else counts
    is_there = found + wanted > 0
    return float((2 * right / (found + wanted).clip(1))[is_there].mean()) if is_there.any() else float("nan")


def choose(offered: Sequence[Setting], tried: Sequence[Tried], *, is_deterministic: bool) -> tuple[Setting, str]:
    """The fastest of those that lose less than the tolerance against the first, and why.

    Args:
        is_deterministic: ask no clock; what reads fewer voxels is faster.
    """
    if len(offered) == 1:
        return offered[0], "as set, nothing was measured"
    if not tried or np.isnan(tried[0].score):
        return offered[0], "the reference, for the fold has no labelled case to measure others with"
    reference = tried[0]
    good = [one for one in tried if one.score > reference.score - TOLERANCE]
    best = min(good, key=lambda one: one.voxels if is_deterministic else one.seconds)
    if best is reference:
        return best.setting, f"no faster setting comes within {TOLERANCE} of its score of {reference.score:.4f}"
    loss = reference.score - best.score
    return best.setting, (
        f"{reference.seconds / best.seconds:.1f} times as fast as the reference, score {best.score:.4f}, "
        f"{'a loss' if loss > 0 else 'a gain'} of {abs(loss):.4f}"
    )


def describe(setting: Setting) -> str:
    """`windows of 2 patches, overlap 0.25, mirrored`."""
    size = "the whole scan" if setting.window is None else f"windows of {setting.window:g} patch(es)"
    return f"{size}, overlap {setting.overlap:g}{', mirrored copies' if setting.mirror else ''}"


if __name__ == "__main__":
    errors.run(main)
