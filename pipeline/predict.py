"""The cases of one fold and the weights that never saw them to masks on the original grid, and probabilities if wanted.

Knows one configuration at a time; combining configurations is `ensemble`'s.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pipeline import errors, records
from pipeline.errors import ImageError
from pipeline.images import Volume, write_mask, write_volume
from pipeline.mirrors import find_mirrors
from pipeline.nn.checkpoints import Model, load_model
from pipeline.nn.device import Device, pick_device
from pipeline.nn.sliding import predict_probabilities
from pipeline.paths import Results
from pipeline.plan import Plan
from pipeline.preprocess import Placement, load_image, load_placement, restore
from pipeline.probabilities import label_map, save_probabilities


def main(
    results: str,
    configuration: str,
    fold: int,
    settings: str,
    keep_probabilities: bool = False,
    device: str = "auto",
    threads: int = 1,
) -> None:
    """`keep_probabilities` is needed when several configurations are to be combined."""
    files = Results(results)
    torch.set_num_threads(threads)
    wanted, processor = json.loads(settings), pick_device(device)
    records.verify_file_list(files.preprocessed(configuration, fold))
    model = load_model(files.model(configuration, fold), processor.where)
    made: list[Path] = []
    for case in tqdm(records.cases_of_fold(records.read_cases(files.cases), fold), desc="predict", mininterval=5):
        folder = files.arrays(configuration, case.case)
        placement = load_placement(folder)
        probabilities = predict_case([model], load_image(folder), placement, processor, wanted, case=case.case)
        mask = files.mask(configuration, case.case)
        write_prediction(mask, probabilities, model.plan, case.channels[0])
        made.append(mask)
        if keep_probabilities and model.plan.task == "segmentation":
            made.append(files.probabilities(configuration, case.case))
            save_probabilities(made[-1], probabilities)
    records.write_file_list(files.predicted(configuration, fold), made)


def predict_case(
    models: list[Model], image: Volume, placement: Placement, device: Device, settings: dict[str, Any], *, case: str
) -> Volume:
    """(C, D, H, W) as prepared to probabilities, or values, (L, I, J, K) on the scan's RAS grid.

    Raises:
        ImageError: not finite; the most likely class of NaN would be a plausible background.
    """
    mirrors = find_mirrors(models[0].plan, settings["train_mirror"]) if settings["mirror"] else ()
    probabilities = predict_probabilities(models, image, device, overlap=settings["overlap"], mirrors=mirrors)
    if not np.isfinite(probabilities).all():
        raise ImageError(f"{case}: the network's output is not finite, so no mask is written. Check scan and weights.")
    plan = models[0].plan
    return restore(probabilities * np.float32(plan.target_scale), placement, has_background=plan.has_background)


def write_prediction(path: Path, probabilities: Volume, plan: Plan, scan: Path) -> None:
    """(L, I, J, K) as the label map that it means, or in a regression as values, on the grid of the scan."""
    if plan.task == "regression":
        write_volume(path, probabilities[0], scan)
    else:
        write_mask(path, label_map(probabilities, plan), scan)


if __name__ == "__main__":
    errors.run(main)
