"""The cases of one fold and the weights that never saw them to masks on the original grid, and probabilities if wanted.

A job that is killed goes on after the last case that it finished. Knows one configuration at a time; combining
configurations is `ensemble`'s.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline import disk, errors, records
from pipeline.errors import CohortError, PredictionError
from pipeline.images import Volume, write_mask, write_volume
from pipeline.mirrors import find_mirrors
from pipeline.nn.checkpoints import Model, load_model
from pipeline.nn.device import Device, pick_device
from pipeline.nn.sliding import predict_slabs
from pipeline.paths import Results
from pipeline.plan import Plan
from pipeline.preprocess import Placement, load_image, load_placement
from pipeline.probabilities import save_prediction
from pipeline.restore import Prediction, restore_labels, restore_values
from pipeline.windows import Window, read_setting, window_of


def main(
    results: str,
    configuration: str,
    fold: int,
    settings: str,
    keep_probabilities: bool = False,
    device: str = "auto",
    threads: int = 1,
) -> None:
    """`keep_probabilities` is needed when several configurations of a segmentation are to be combined."""
    files = Results(results)
    torch.set_num_threads(threads)
    processor = pick_device(device)
    records.verify_file_list(files.preprocessed(configuration, fold))
    model = load_model(files.model(configuration, fold), processor.where)
    cases = records.cases_of_fold(records.read_cases(files.checked_cases), fold)
    setting, wanted = read_setting(files.inference(configuration)).for_scans(len(cases)), json.loads(settings)
    mirrors = find_mirrors(model.plan, wanted["train_mirror"])
    inputs = [files.manifest, files.preprocessed(configuration, fold), files.model(configuration, fold)]
    made_of = [*map(records.sha256, [*inputs, files.inference(configuration)]), settings, str(keep_probabilities)]
    unfinished, probabilities = files.unfinished(configuration, fold), files.probabilities(configuration, fold)
    maps = unfinished / probabilities.name
    begin(maps, {"made_of": made_of})
    masks = [files.mask(configuration, case.case) for case in cases]
    for case, mask in zip(tqdm(cases, desc="predict", mininterval=5), masks, strict=True):
        note = unfinished / f"{case.case}.json"
        if is_finished(note):
            continue
        folder = files.arrays(configuration, case.case)
        image = load_image(folder)
        window = window_of(setting, model.plan, model.width, image.shape[1:], mirrors, wanted["memory_gib"])
        prediction = predict_case([model], image, load_placement(folder), processor, window, case=case.case)
        made = [mask]
        if keep_probabilities:
            made.append(maps / files.probabilities_of(configuration, fold, case.case).name)
            prediction = save_prediction(made[-1], prediction)
        write_prediction(mask, [prediction], model.plan, case.channels[0])
        records.write_file_list(note, records.digests(made))
    if keep_probabilities:
        shutil.rmtree(probabilities, ignore_errors=True)  # of a run by hand: Snakemake has deleted them before
        os.replace(maps, probabilities)
        kept = [files.probabilities_of(configuration, fold, case.case) for case in cases]
        records.write_file_list(files.list_of_probabilities(configuration, fold), records.digests(kept))
    records.write_file_list(files.predicted(configuration, fold), records.digests(masks), device=str(processor))
    shutil.rmtree(unfinished)


def begin(maps: Path, made_of: dict[str, list[str]]) -> None:
    """See to it that there is a folder `maps`, beside notes of what was made of the same weights, scans and settings, or none."""
    origin = maps.with_name("_made_of.json")  # no case is called like this
    if not origin.exists() or records.read_json(origin) != made_of:
        shutil.rmtree(maps.parent, ignore_errors=True)
        records.write_json(origin, made_of)
    with disk.on_disk(maps):
        maps.mkdir(exist_ok=True)


def is_finished(note: Path) -> bool:
    """Whether an earlier attempt made all files of a case, and they are as it left them."""
    try:
        records.verify_file_list(note)
    except (FileNotFoundError, CohortError):
        return False
    return True


def predict_case(
    models: Sequence[Model], image: Volume, placement: Placement, device: Device, window: Window, *, case: str
) -> Prediction:
    """(C, D, H, W) as prepared to probabilities, or values, computed slab by slab when they are asked for.

    Raises:
        PredictionError: while slabs are computed: not finite, or no memory.
    """

    def slabs() -> Iterator[NDArray[np.float32]]:
        scale = np.float32(models[0].plan.target_scale)
        try:
            for slab in predict_slabs(models, image, device, window):
                yield slab if scale == 1 else slab * scale
        except PredictionError as error:
            raise PredictionError(f"{case}: {error}") from error

    return Prediction(slabs(), image.shape[1:], placement)


def write_prediction(path: Path, predictions: Sequence[Prediction], plan: Plan, scan: Path) -> None:
    """The mean of predictions as the label map that it means, or in a regression as values, on the grid of the scan."""
    if plan.task == "regression":
        write_volume(path, restore_values(predictions), scan)
    else:
        write_mask(path, restore_labels(predictions, plan), scan)


if __name__ == "__main__":
    errors.run(main)
