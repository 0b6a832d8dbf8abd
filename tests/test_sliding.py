import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference

from pipeline.errors import PredictionError
from pipeline.mirrors import Mirror
from pipeline.nn.checkpoints import Model
from pipeline.nn.networks import build_network
from pipeline.nn.outputs import activate
from pipeline.nn.sliding import predict_slabs
from pipeline.windows import Setting, Window, num_voxels, window_of, window_starts
from tests.dense import gathered, predict_densely
from tests.test_preprocess import make_plan
from tests.test_train import CPU

SHAPES = [(16, 24, 16), (9, 11, 13), (33, 24, 45), (40, 7, 19)]
PATCH = (16, 24, 16)


class Identity(torch.nn.Module):
    def forward(self, image):
        return image


class Counting(torch.nn.Module):
    """A network of one convolution that counts what it is asked."""

    def __init__(self, dims, num_outputs=3):
        super().__init__()
        torch.manual_seed(0)
        kind = torch.nn.Conv3d if dims == 3 else torch.nn.Conv2d
        self.convolution = kind(1, num_outputs, 3, padding=1)
        self.batches = []

    def forward(self, image):
        self.batches.append(tuple(image.shape))
        return self.convolution(image)


def scan(shape, seed=0):
    return np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32)


def model_of(network, dims=3, **fields):
    return Model(network, make_plan(dims=dims, patch_size=PATCH[-dims:], **fields), width=4)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.8])
def test_an_identity_network_gives_the_scan_back(dims, shape, overlap):
    image = scan(shape)
    model = model_of(Identity(), dims, task="regression", labels=())
    assert np.abs(predict_densely([model], image, CPU, overlap=overlap) - image).max() < 1e-5


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_slabs_are_what_one_accumulator_of_the_whole_scan_gives(dims, shape):
    """The additions are the same in the same order; only torch rounds a call of several windows, or a row, in its own way."""
    image, model = scan(shape), model_of(Counting(dims), dims)
    streamed, dense = predict_densely([model], image, CPU), accumulated_densely(model, image)
    assert np.abs(streamed - dense).max() < 1e-6


def accumulated_densely(model, image):
    """The plain form: one accumulator of labels x volume and one of weights."""
    plan, shape = model.plan, image.shape[1:]
    size = (1,) * (3 - plan.dims) + plan.patch_size
    padded = np.maximum(shape, size)
    before = [(edge - own) // 2 for edge, own in zip(padded, shape, strict=True)]
    volume = torch.zeros(1, *padded)
    inside = (slice(None), *(slice(at, at + own) for at, own in zip(before, shape, strict=True)))
    volume[inside] = torch.from_numpy(image)
    total, weights = torch.zeros(3, *padded), torch.zeros(*padded)
    profiles = [torch.exp(-0.5 * ((torch.arange(edge) - (edge - 1) / 2) / (edge / 8)) ** 2) for edge in size]
    weight = profiles[0][:, None, None] * profiles[1][:, None] * profiles[2]
    if plan.dims == 2:
        weight = profiles[1][None, :, None] * profiles[2]
    grid = [window_starts(int(edge), own, 0.5) for edge, own in zip(padded, size, strict=True)]
    sums = [torch.zeros(int(edge)) for edge in padded]
    for axis, starts in enumerate(grid):
        for start in starts:
            sums[axis][start : start + size[axis]] += profiles[axis] if plan.dims == 3 or axis else 1
    with torch.inference_mode():
        for depth in grid[0]:
            for line in grid[1]:
                for column in grid[2]:
                    part = (
                        slice(None),
                        *(slice(at, at + own) for at, own in zip((depth, line, column), size, strict=True)),
                    )
                    window = volume[part][None] if plan.dims == 3 else volume[part].movedim(1, 0)
                    output = model.network(window)
                    output = output[0] if plan.dims == 3 else output.movedim(0, 1)
                    total[part].addcmul_(output, weight)
        weights = sums[0][:, None, None] * sums[1][:, None] * sums[2]
        return activate((total / weights)[None], plan)[0][inside].numpy()


def test_windows_of_another_length_give_the_same_where_the_network_sees_only_its_neighbours():
    image, model = scan((33, 24, 45)), model_of(Counting(3), labels=(0, 2, 5))
    short = predict_densely([model], image, CPU, size=(16, 24, 16), overlap=0.5)
    long = predict_densely([model], image, CPU, size=(48, 24, 48), overlap=0.5)
    inside = (slice(None), slice(4, -4), slice(4, -4), slice(4, -4))
    assert np.abs(short - long)[inside].max() < 0.05, "only borders of windows differ"


@pytest.mark.parametrize("shape", [(32, 48, 32), (9, 11, 13)])
def test_it_agrees_with_monai_where_each_voxel_is_in_one_window(shape):
    """Where windows overlap MONAI lifts the weights at their borders, which a Gaussian makes next to nothing."""
    image, model = scan(shape), model_of(build_network(make_plan(patch_size=PATCH), 4).eval())
    with torch.inference_mode():
        batch = torch.from_numpy(image)[None]
        logits = sliding_window_inference(batch, PATCH, 1, model.network, overlap=0, mode="gaussian")
        expected = activate(logits, model.plan)[0].numpy()
    assert np.abs(predict_densely([model], image, CPU, overlap=0) - expected).max() < 1e-5


def test_what_is_held_depends_on_the_window_and_not_on_the_depth_of_the_scan():
    model, peaks = model_of(Counting(3)), []
    for depth in (48, 480):
        image = scan((depth, 24, 16))
        with torch.profiler.profile(profile_memory=True) as seen:
            for _ in predict_slabs([model], image, CPU, Window(PATCH, 0.5)):
                pass
        allocated = [event.cpu_memory_usage for event in seen.events() if event.cpu_memory_usage > 0]
        peaks.append(max(allocated))
    assert peaks[0] == peaks[1]


def test_several_windows_and_their_mirrored_copies_share_a_call():
    network = Counting(3)
    image = scan((16, 48, 64))
    batched, single = (
        predict_densely([model_of(network)], image, CPU, mirrors=(Mirror(0), Mirror(2)), batch=batch)
        for batch in (8, 1)
    )
    assert {shape[0] for shape in network.batches[: 3 * 7 * 4 // 8]} == {8}
    assert np.allclose(batched, single, atol=1e-6)


def test_several_networks_give_the_mean_of_their_probabilities():
    image, plan = scan((20, 24, 16)), make_plan(patch_size=PATCH)
    models = [Model(build_network(plan, 4).eval(), plan, 4) for _ in range(2)]
    each = [predict_densely([model], image, CPU, overlap=0) for model in models]
    both = predict_densely(models, image, CPU, overlap=0)
    assert np.abs(both.sum(axis=0) - 1).max() < 1e-5
    single_window = slice(0, 4)  # rows that only one window reaches
    assert np.abs(both - np.mean(each, axis=0))[:, single_window].max() < 1e-5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_window_without_numbers_stops_the_scan(value):
    class Broken(Counting):
        def forward(self, image):
            logits = super().forward(image)
            if len(self.batches) == 3:
                logits[0, 1, 2, 2, 2] = value
            return logits

    with pytest.raises(PredictionError, match="not finite, so no mask is written"):
        predict_densely([model_of(Broken(3))], scan((40, 24, 16)), CPU, batch=1)


def test_a_call_that_does_not_fit_into_memory_goes_in_halves_and_a_single_window_fails_by_name():
    class Small(Counting):
        most = 1

        def forward(self, image):
            if len(image) > self.most:
                raise torch.OutOfMemoryError("no")
            return super().forward(image)

    image, roomy, small = scan((16, 48, 64)), Counting(3), Small(3)
    expected = predict_densely([model_of(roomy)], image, CPU, batch=4)
    assert np.array_equal(predict_densely([model_of(small)], image, CPU, batch=4), expected)
    small.most = 0
    with pytest.raises(PredictionError, match=re.escape("out of memory with a single window. Set a smaller")):
        predict_densely([model_of(small)], image, CPU)


@pytest.mark.parametrize(
    ("edge", "size", "overlap"), [(10, 16, 0.5), (16, 16, 0.5), (17, 16, 0.5), (160, 64, 0.5), (41, 8, 0)]
)
def test_windows_reach_every_voxel_and_overlap_by_what_was_asked(edge, size, overlap):
    starts = window_starts(edge, size, overlap)
    assert starts[0] == 0
    assert max(starts[-1] + size, edge) == max(edge, size)
    assert all(following - start <= size * (1 - overlap) + 1 for start, following in pairwise(starts))
    assert window_starts(160, 64, 0.5) == [0, 32, 64, 96]


def test_a_setting_becomes_a_window_that_scan_strides_and_memory_allow():
    model = model_of(Identity())
    divisors = 2, 4, 4  # of make_plan's strides

    def size(window, shape, memory_gib=8.0):
        return window_of(Setting(window, 0.25, False), model.plan, 4, shape, (), memory_gib).size

    assert size(1, (90, 90, 90)) == PATCH
    assert size(2, (90, 90, 90)) == (32, 48, 32)
    assert size(None, (33, 9, 90)) == (34, 24, 92), "as large as the scan, no smaller than the patch"
    assert all(edge % divisor == 0 for edge, divisor in zip(size(1.3, (90, 90, 90)), divisors, strict=True))
    little = size(None, (400, 400, 400), memory_gib=0.2)
    assert np.prod(little) < np.prod(size(None, (400, 400, 400), memory_gib=0.8))
    assert size(None, (400, 400, 400), memory_gib=0.0001) == PATCH


def test_the_work_is_the_voxels_that_the_network_reads():
    network = Counting(3)
    window, shape = Window(PATCH, 0.5, (Mirror(2),)), (20, 30, 40)
    predict_densely([model_of(network)], scan(shape), CPU, overlap=0.5, mirrors=(Mirror(2),))
    assert num_voxels(window, model_of(network).plan, shape) == sum(np.prod(shape) for shape in network.batches)


def test_slabs_come_in_order_and_make_up_the_scan():
    slabs = [
        slab.shape[1] for slab in predict_slabs([model_of(Counting(3))], scan((41, 24, 16)), CPU, Window(PATCH, 0.5))
    ]
    assert sum(slabs) == 41
    assert max(slabs) <= 16
    assert gathered([np.zeros((1, rows, 1, 1)) for rows in slabs]).shape[1] == 41
