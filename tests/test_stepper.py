"""A step in parts is the step in one; memory that runs out and gradients that are not numbers do no harm."""

import pytest
import torch
from torch import nn

from pipeline.errors import TrainingError
from pipeline.nn.device import Device
from pipeline.nn.networks import build_network
from pipeline.nn.stepper import GRADIENT_NORM, Stepper, tame_gradients
from tests.test_train import tiny_plan

CPU = Device(torch.device("cpu"), None)


def make_stepper(fits=8, **changes):
    """A linear model on the mean squared error, with room for `fits` samples at once."""
    torch.manual_seed(0)
    network = nn.Linear(3, 1)

    def measure(network, image, reference):
        if len(image) > fits:
            raise torch.OutOfMemoryError("out of memory")
        return (network(image) - reference).square().mean()

    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    return Stepper(network, optimizer, torch.amp.GradScaler("cpu", enabled=False), measure, CPU, **changes)


def make_batch(size=7):
    random = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, generator=random), torch.randn(size, 1, generator=random)


@pytest.mark.parametrize("fits", [1, 2, 3, 5])
def test_a_batch_that_does_not_fit_goes_in_parts_with_the_same_result(fits, capsys):
    whole, split = make_stepper(), make_stepper(fits)
    losses = [stepper.step(make_batch())[0] for stepper in (whole, split)]
    assert torch.allclose(*losses)
    assert torch.allclose(whole.network.weight, split.network.weight, atol=1e-6)
    assert "a batch of 7 now goes in" in capsys.readouterr().out
    split.step(make_batch())
    assert "memory" not in capsys.readouterr().out, "the parts are kept"


def test_a_patch_that_alone_is_too_large_is_an_error_that_says_what_to_do():
    with pytest.raises(TrainingError, match=r"out of memory with a single patch. Set a smaller `patch_size`"):
        make_stepper(fits=0).step(make_batch())
    with pytest.raises(TrainingError, match="out of memory with 7 patches per process"):
        make_stepper(fits=3, may_split=False).step(make_batch())


def test_the_default_network_lets_go_of_a_step_that_ran_out_of_memory():
    network = build_network(tiny_plan(), 4).train()
    network(torch.zeros(1, 1, *tiny_plan().patch_size))
    assert network.heads and not any(isinstance(head, torch.Tensor) for head in network.heads)


def test_the_number_of_parts_survives_a_restart():
    stepper, fresh = make_stepper(2), make_stepper(2)
    stepper.step(make_batch())
    fresh.load_state_dict(stepper.state_dict())
    assert fresh.parts == stepper.parts > 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_becomes_zero(bad):
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))]
    parameters[0].grad, parameters[1].grad = torch.tensor([1.0, bad, 2.0]), torch.ones(2)
    assert tame_gradients(parameters) == 0
    assert not any(parameter.grad.any() for parameter in parameters)


def test_a_long_gradient_is_clipped_and_a_short_one_is_left_alone():
    long, short = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    long.grad, short.grad = torch.tensor([300.0, 400.0]), torch.tensor([0.3, 0.4])
    assert tame_gradients([long]) == 1
    assert torch.allclose(long.grad.norm(), torch.tensor(GRADIENT_NORM))
    assert tame_gradients([short]) == 1
    assert torch.equal(short.grad, torch.tensor([0.3, 0.4]))
