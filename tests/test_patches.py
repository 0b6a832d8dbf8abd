import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.nn.patches import PatchSource, batches, cut, draw_batch, draw_start, foreground_patches, open_sources
from pipeline.nn.workers import Workers
from pipeline.preprocess import foreground_locations

SHAPE = (9, 21, 17)


def make_source(case="a", shape=SHAPE):
    classes = np.zeros(shape, np.uint16)
    classes[-1, -2:, -1] = 2  # a rare label in a corner
    classes[3:6, 4:9, 4:9] = 1
    image = np.arange(classes.size, dtype=np.float32).reshape(1, *shape)
    return PatchSource(
        case, torch.from_numpy(image), torch.from_numpy(classes.view(np.int16)), foreground_locations(classes)
    )


@given(st.integers(0, 10_000), st.booleans())
def test_a_patch_never_leaves_a_volume_that_is_large_enough(seed, is_foreground):
    start = draw_start(make_source(), (4, 8, 8), is_foreground, np.random.default_rng(seed))
    assert all(0 <= first <= size - edge for first, size, edge in zip(start, SHAPE, (4, 8, 8), strict=True))


@given(st.integers(0, 10_000))
def test_a_foreground_patch_holds_foreground(seed):
    source = make_source()
    for patch_size in ((4, 8, 8), (8, 8)):
        start = draw_start(source, patch_size, True, np.random.default_rng(seed))
        assert cut(source.classes[None], start, patch_size).any()


def test_foreground_patches_take_labels_evenly_and_lie_at_random_offsets():
    source, random = make_source(), np.random.default_rng(0)
    starts = [draw_start(source, (4, 8, 8), True, random) for _ in range(300)]
    with_rare = [start for start in starts if (cut(source.classes[None], start, (4, 8, 8)) == 2).any()]
    assert 0.35 < len(with_rare) / len(starts) < 0.65
    assert len({start for start in starts if start not in with_rare}) > 50


def test_the_classes_of_a_case_are_told_apart_once(monkeypatch):
    source, random = make_source(), np.random.default_rng(0)
    assert [len(voxels) for voxels in source.foreground] == [(source.classes == index).sum() for index in (1, 2)]
    monkeypatch.setattr(np, "unique", None)
    draw_start(source, (4, 8, 8), True, random)


def test_the_share_of_foreground_holds_for_the_whole_batch_however_many_processes_draw_it():
    assert [foreground_patches(size, 0.5) for size in (1, 2, 7)] == [1, 1, 4]
    assert foreground_patches(5, 0.0) == 0
    assert [Workers(rank, 2).part_of(foreground_patches(2, 0.5), share=1) for rank in range(2)] == [1, 0]


def test_a_volume_smaller_than_the_patch_lies_in_the_middle_of_zeros():
    source = make_source(shape=(6, 10, 10))
    start = draw_start(source, (8, 12, 12), True, np.random.default_rng(0))
    patch = cut(source.image + 1, start, (8, 12, 12))
    assert patch.shape == (1, 8, 12, 12)
    assert torch.equal(patch[0, 1:7, 1:11, 1:11], source.image[0] + 1)
    assert patch.sum() == (source.image + 1).sum()


@pytest.mark.parametrize("patch_size", [(8, 8), (4, 8, 8)])
def test_the_same_generator_state_gives_the_same_batch_and_image_and_reference_match(patch_size):
    sources = [make_source("a"), make_source("b")]
    first, second = (draw_batch(sources, patch_size, 5, 2, np.random.default_rng(7)) for _ in range(2))
    assert (first[0] == second[0]).all()
    image, reference = first
    assert image.shape == reference.shape == (5, 1, *patch_size)
    assert torch.equal(reference, sources[0].classes.ravel()[image.long()])


def test_a_case_without_foreground_still_gives_patches():
    empty = PatchSource("e", torch.ones(1, *SHAPE), torch.zeros(SHAPE, dtype=torch.int16), np.empty((0, 4), np.int32))
    image, reference = draw_batch([empty], (4, 8, 8), 2, 2, np.random.default_rng(0))
    assert image.shape == (2, 1, 4, 8, 8)
    assert not reference.any()


def save_source(folder, source):
    np.save(folder / "image.npy", source.image.numpy())
    np.save(folder / "classes.npy", source.classes.numpy().view(np.uint16))
    np.save(folder / "locations.npy", source.locations)


def test_a_cohort_larger_than_a_quarter_of_the_memory_is_mapped_and_reads_the_same(tmp_path):
    source = make_source()
    save_source(tmp_path, source)
    (mapped,) = open_sources([tmp_path], 1000, torch.device("cpu"), 0)
    (held,) = open_sources([tmp_path], 10**9, torch.device("cpu"), 0)
    assert mapped.is_mapped and not held.is_mapped
    for opened in (mapped, held):
        assert torch.equal(opened.image, source.image) and torch.equal(opened.classes, source.classes)


def test_a_cohort_goes_to_the_device_when_it_fits_there(tmp_path):
    save_source(tmp_path, make_source())
    (elsewhere,) = open_sources([tmp_path], 1000, torch.device("meta"), free_device_bytes=10**9)
    assert elsewhere.image.device.type == elsewhere.classes.device.type == "meta"
    (here,) = open_sources([tmp_path], 10**9, torch.device("meta"), free_device_bytes=1000)
    assert here.image.device.type == "cpu"


@pytest.mark.parametrize("ahead", [True, False])
def test_batches_come_in_the_order_of_their_steps_whether_drawn_ahead_or_not(ahead):
    drawn = batches(lambda step: (torch.tensor(step), torch.tensor(-step)), 5, ahead=ahead)
    assert [int(image) for image, _ in itertools.islice(drawn, 4)] == [5, 6, 7, 8]


def test_an_error_while_drawing_ahead_reaches_the_training():
    def draw(step):
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        next(batches(draw, 0, ahead=True))
