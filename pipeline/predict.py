"""The cases of one fold and the weights that never saw them to masks on the original grid, and probabilities if wanted.

Knows one configuration at a time; combining configurations is `ensemble`'s.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline import errors, records
from pipeline.errors import PredictionError
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
    masks: list[Path] = []
    maps: list[Path] = []
    for case in tqdm(cases, desc="predict", mininterval=5):
        folder = files.arrays(configuration, case.case)
        image = load_image(folder)
        window = window_of(setting, model.plan, model.width, image.shape[1:], mirrors, wanted["memory_gib"])
        prediction = predict_case([model], image, load_placement(folder), processor, window, case=case.case)
        if keep_probabilities:
            maps.append(files.probabilities_of(configuration, fold, case.case))
            prediction = save_prediction(maps[-1], prediction)
        masks.append(files.mask(configuration, case.case))
        write_prediction(masks[-1], [prediction], model.plan, case.channels[0])
    if keep_probabilities:
        records.write_file_list(files.list_of_probabilities(configuration, fold), records.digests(maps))
    records.write_file_list(files.predicted(configuration, fold), records.digests(masks), device=str(processor))


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
