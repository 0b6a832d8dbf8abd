"""Every network, written as a program and as ONNX, computes what it computed here. Tiny throughout."""

import numpy as np
import onnxruntime
import pytest
import torch

from pipeline.errors import ExportError
from pipeline.nn import programs
from pipeline.nn.checkpoints import Model
from pipeline.nn.networks import build_network
from pipeline.nn.networks.shallow import ShallowConv3d, plain
from pipeline.nn.programs import missing_packages, save_onnx, save_program
from tests.test_networks import BOTH_DIMS, EVERY_NETWORK, WIDTH, tiny_plan

SLOW_AS_ONNX = {("swin_unetr", 3), ("unetr", 3)}  # a minute each; they agreed to 1e-4 with torch 2.13 and ONNX 1.23


def make_model(plan, seed=0):
    torch.manual_seed(seed)
    return Model(build_network(plan, WIDTH).eval(), plan, WIDTH)


def windows_of(plan, count):
    torch.manual_seed(3)
    return torch.randn(count, len(plan.channels), *plan.patch_size)


@BOTH_DIMS
@EVERY_NETWORK
def test_every_network_computes_the_same_as_a_program_and_as_onnx_for_any_number_of_windows(tmp_path, network, dims):
    model = make_model(tiny_plan(network, dims, encoder="resnet10"))
    assert save_program(tmp_path / "model.pt2", [model]) <= 1e-5
    program = torch.export.load(tmp_path / "model.pt2").module()
    batches = [windows_of(model.plan, count) for count in (1, 3)]
    with torch.no_grad():
        logits = [model.network(image) for image in batches]
        for image, expected in zip(batches, logits, strict=True):
            assert torch.allclose(program(image), torch.softmax(expected, dim=1), atol=1e-5)
    if (network, dims) in SLOW_AS_ONNX:
        return
    assert save_onnx(tmp_path / "fold_0.onnx", model) <= 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "fold_0.onnx", providers=["CPUExecutionProvider"])
    for image, expected in zip(batches, logits, strict=True):
        (found,) = session.run(["logits"], {"image": image.numpy()})
        assert np.abs(found - expected.numpy()).max() <= 1e-4


def test_a_program_is_the_mean_over_the_folds_of_what_their_outputs_mean(tmp_path):
    meanings = {
        "labels": (tiny_plan("unet", 2), lambda logits: torch.softmax(logits, dim=1)),
        "regions": (tiny_plan("unet", 2, regions=((2, 5), (5,))), torch.sigmoid),
        "values": (tiny_plan("unet", 2, task="regression", target_scale=40.0), lambda logits: 40 * logits),
    }
    for name, (plan, meaning) in meanings.items():
        models = [make_model(plan, seed) for seed in range(2)]
        image = windows_of(plan, 2)
        save_program(tmp_path / f"{name}.pt2", models)
        with torch.no_grad():
            expected = sum(meaning(model.network(image)) for model in models) / 2
            found = torch.export.load(tmp_path / f"{name}.pt2").module()(image)
        assert torch.allclose(found, expected, atol=1e-4), name


def test_a_network_is_the_same_after_it_was_exported(tmp_path):
    model = make_model(tiny_plan("unet", 3))
    image = windows_of(model.plan, 1)
    before = model.network(image)
    for _ in range(2):
        save_program(tmp_path / "model.pt2", [model])
    assert torch.equal(model.network(image), before)
    assert any(type(part) is ShallowConv3d for part in model.network.modules())
    assert not any(type(part) is ShallowConv3d for part in plain(model.network).modules())


def test_a_file_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "TOLERANCE", -1.0)
    with pytest.raises(ExportError, match=r"model\.pt2: .* off what the network puts out, -1 at most expected"):
        save_program(tmp_path / "model.pt2", [make_model(tiny_plan("unet", 2))])


def test_a_network_without_onnx_form_is_one_line(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise torch.onnx.OnnxExporterError("no form of aten::something\nand a long report")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(ExportError, match=r"unet cannot be written as ONNX: no form of aten::something$"):
        save_onnx(tmp_path / "fold_0.onnx", make_model(tiny_plan("unet", 2)))
    assert not list(tmp_path.iterdir())


def test_packages_that_are_not_installed_are_named(monkeypatch):
    assert missing_packages() == []
    monkeypatch.setattr(programs, "ONNX_PACKAGES", ("onnx", "nowhere_to_be_found"))
    assert missing_packages() == ["nowhere_to_be_found"]
