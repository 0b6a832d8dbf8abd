"""Runs inside the peer's environment: nnU-Net's trainer, dataloaders and predictor, one JSON object on the last line.

`speed` times its steps, `train` trains it for a time, `predict` segments the held-out cases, `infer` takes a random volume
through a random network, `resample` a scan with its label map. Knows nothing of ours.
"""

import argparse
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import memory  # beside this script
import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2 import paths
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape, resample_data_or_seg_to_shape
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

POLYNOMIAL = 0.9  # nnU-Net's decay of the learning rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=["speed", "train", "predict", "infer", "resample"])
    parser.add_argument("--dataset")
    parser.add_argument("--configuration")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch-size", type=int, default=0, help="0: as planned")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--masks", type=Path)
    parser.add_argument("--edge", type=int, help="of the volume that `infer` takes, in voxels")
    parser.add_argument("--patch", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--stages", type=int)
    parser.add_argument("--labels", type=int)
    parser.add_argument("--case", type=Path, help="for `resample`: an .npz with image and labels")
    parser.add_argument("--result", type=Path)
    parser.add_argument("--spacing", help="in mm, with commas")
    parser.add_argument("--target")
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    if wanted.job == "infer":
        print("\n" + json.dumps(infer(wanted.edge, wanted.patch, wanted.width, wanted.stages, wanted.labels)))
        return
    if wanted.job == "resample":
        spacings = ([float(edge) for edge in text.split(",")] for text in (wanted.spacing, wanted.target))
        print("\n" + json.dumps(resample(wanted.case, wanted.result, *spacings)))
        return
    trainer = build_trainer(wanted)
    if wanted.job == "speed":
        found = speed(trainer, wanted.steps, wanted.warm_up)
    elif wanted.job == "train":
        found = train(trainer, 60 * wanted.minutes)
    else:
        found = predict(trainer, wanted.dataset, wanted.masks)
    used = {"batch_size": trainer.batch_size, "patch_size": trainer.configuration_manager.patch_size}
    print("\n" + json.dumps({**found, **used}))


def build_trainer(wanted: argparse.Namespace) -> nnUNetTrainer:
    folder = Path(paths.nnUNet_preprocessed) / wanted.dataset
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    if wanted.batch_size:
        plans["configurations"][wanted.configuration]["batch_size"] = wanted.batch_size
    return nnUNetTrainer(
        plans={**plans, "continue_training": False},  # as its own command hands it over
        configuration=wanted.configuration,
        fold=wanted.fold,
        dataset_json=json.loads((folder / "dataset.json").read_text()),
        device=torch.device(wanted.device),
    )


def speed(trainer: nnUNetTrainer, steps: int, warm_up: int) -> dict[str, object]:
    """Seconds of each step, from asking for a batch to new weights; and the part of it spent waiting for the batch."""
    trainer.disable_checkpointing = True
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    seconds, waits = [], []
    for _ in range(warm_up + steps):
        begin = time.perf_counter()
        batch = next(trainer.dataloader_train)
        waits.append(time.perf_counter() - begin)
        trainer.train_step(batch)  # ends with the loss on the CPU, so the clock needs no synchronisation
        seconds.append(time.perf_counter() - begin)
    trainer.on_train_end()
    return {"seconds": seconds[warm_up:], "waits": waits[warm_up:]}


def train(trainer: nnUNetTrainer, budget_s: float) -> dict[str, object]:
    """Its steps, with its decay of the learning rate laid over the time rather than over epochs, and nothing else.

    Epochs of 250 steps would leave the rate at its peak for all of a short budget. Its validation after each epoch
    changes no weights that it predicts with, so it is left out.
    """
    trainer.on_train_start()
    trainer.network.train()
    steps, begin = 0, time.perf_counter()
    while (elapsed_s := time.perf_counter() - begin) < budget_s:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - elapsed_s / budget_s) ** POLYNOMIAL
        loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
        steps += 1
        if steps % 20 == 0:
            print(f"step {steps}, {elapsed_s:.0f} s, loss {float(loss):.3f}", flush=True)
    trainer.on_train_end()  # saves checkpoint_final.pth
    return {"steps": steps, "seconds": elapsed_s}


def predict(trainer: nnUNetTrainer, dataset: str, masks: Path) -> dict[str, object]:
    """The fold's cases with its defaults: half-overlapping windows, Gaussian weights, averaged over mirrored copies."""
    trainer.initialize()
    trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    trainer.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(device=trainer.device, perform_everything_on_device=trainer.device.type == "cuda")
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    cases = sorted(trainer.do_split()[1])
    images = Path(paths.nnUNet_raw) / dataset / "imagesTr"
    masks.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    predictor.predict_from_files_sequential(
        [[str(path) for path in sorted(images.glob(f"{case}_[0-9][0-9][0-9][0-9].nii.gz"))] for case in cases],
        [str(masks / case) for case in cases],
        overwrite=False,  # a killed run goes on
    )
    return {"cases": len(cases), "seconds": time.perf_counter() - begin}


def infer(edge: int, patch: int, width: int, stages: int, num_labels: int) -> dict[str, object]:
    """Its predictor, without mirroring, around the network that MONAI's DynUNet is too: the same layers in the same order."""
    network = PlainConvUNet(
        input_channels=1,
        n_stages=stages,
        features_per_stage=[width * 2**stage for stage in range(stages)],
        conv_op=torch.nn.Conv3d,
        kernel_sizes=3,
        strides=[1] + [2] * (stages - 1),
        n_conv_per_stage=2,
        num_classes=num_labels,
        n_conv_per_stage_decoder=2,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.network = network
    predictor.configuration_manager = SimpleNamespace(patch_size=[patch] * 3)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=num_labels)
    image = torch.randn(1, edge, edge, edge)
    base, begin = memory.start(), time.perf_counter()
    logits = predictor.predict_sliding_window_return_logits(image)
    at = time.perf_counter()
    label_map = logits.argmax(0).to(torch.uint8)
    end = time.perf_counter()
    assert label_map.shape == image.shape[1:]
    return {"seconds": end - begin, "without_argmax_s": at - begin, "mib": memory.peak() - base}


def resample(case: Path, result: Path, spacing: list[float], target: list[float], rounds: int = 3) -> dict[str, float]:
    """What its preprocessor does with a scan and its label map, the fastest of several rounds each."""
    given = np.load(case)
    shape = compute_new_shape(given["image"].shape, spacing, target)
    found: dict[str, np.ndarray] = {}
    seconds = {}
    for name, is_seg, order in (("image", False, 3), ("labels", True, 1)):
        array = given[name][None].astype(np.float32 if name == "image" else np.int16)
        rule = {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}
        times = []
        for _ in range(rounds):
            begin = time.perf_counter()
            found[name] = resample_data_or_seg_to_shape(array, shape, spacing, target, **rule)[0]
            times.append(time.perf_counter() - begin)
        seconds[f"{name}_s"] = min(times)
    np.savez(result, **found)
    return seconds


if __name__ == "__main__":
    main()
