"""Pictures of a training show what they say, for every task and shape, and leave its random numbers alone."""

import io

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from pipeline import figures
from pipeline.mirrors import find_mirrors
from pipeline.nn.augment import Options
from pipeline.nn.forms import Form
from pipeline.nn.networks import build_network
from pipeline.nn.outputs import masks_of
from pipeline.nn.patches import PatchSource
from pipeline.nn.pictures import augmented_sheet, log_pictures, outlined, result_tiles
from pipeline.preprocess import foreground_locations
from tests.test_preprocess import make_plan

OPTIONS = Options(elastic=True, artefacts=())
FORM = Form(torch.float32, torch.contiguous_format)
FLAT = dict(dims=2, patch_size=(24, 16), strides=((1, 1), (2, 2), (2, 2)), kernels=((3, 3),) * 3)
RED, BLUE = ([round(255 * part) for part in figures.to_rgb(colour)] for colour in figures.PALETTE[:2])


class Events:
    """Keeps the pictures that TensorBoard would get."""

    def __init__(self):
        self.pictures = {}

    def add_image(self, name, picture, step, dataformats):
        assert picture.dtype == np.uint8 and picture.shape[2] == 3 and dataformats == "HWC"
        self.pictures[name, step] = picture


def source(channels=1):
    random = np.random.default_rng(0)
    classes = np.zeros((9, 24, 18), np.uint16)
    classes[2:7, 0:9, 4:12] = 2
    image = random.normal(size=(channels, *classes.shape)).astype(np.float32) + classes
    tensors = torch.from_numpy(image), torch.from_numpy(classes.view(np.int16))
    return PatchSource("case", *tensors, foreground_locations(classes))


@pytest.mark.parametrize("plan", [make_plan(), make_plan(**FLAT)], ids=["3d", "2d"])
def test_pictures_leave_mode_and_random_state_as_they_were(plan):
    torch.manual_seed(0)
    network = build_network(plan, 4).train()
    image, reference = torch.randn(2, 1, *plan.patch_size), torch.randint(3, (2, 1, *plan.patch_size))
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    events = Events()
    log_pictures(events, 3, network, image, reference, plan, FORM)
    augmented_sheet([source()], plan.patch_size, plan, OPTIONS, (), (1, 0))
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert all(module.training for module in network.modules())
    assert set(events.pictures) == {("prediction", 3), ("skips", 3)}


def test_a_network_without_skips_has_no_picture_of_them():
    events, plan = Events(), make_plan(**FLAT)
    image = torch.zeros(1, 1, 24, 16)
    log_pictures(events, 1, torch.nn.Conv2d(1, 3, 1), image, image.to(torch.int16), plan, FORM)
    assert set(events.pictures) == {("prediction", 1)}


def has_colour(picture, colour):
    return bool((picture == colour).all(axis=2).any())


def test_the_prediction_is_outlined_in_the_colour_of_its_label():
    image, reference, logits = torch.zeros(1, 1, 9, 11), torch.zeros(1, 1, 9, 11), torch.zeros(1, 3, 9, 11)
    logits[0, 0], logits[0, 2, 3:6, 3:6] = 1, 2
    (picture,) = result_tiles(image, reference, logits, make_plan(**FLAT))
    assert has_colour(picture, BLUE) and not has_colour(picture, RED)
    (picture,) = result_tiles(image, reference, logits[:, 1:], make_plan(**FLAT, regions=((2, 5), (5,))))
    assert has_colour(picture, BLUE) and not has_colour(picture, RED)


def test_outlines_are_those_of_regions_or_labels_and_none_of_a_regression():
    reference = torch.tensor([0, 1, 2, 3]).view(1, 1, 2, 2)  # 3: the ignore label
    labels, regions = make_plan(**FLAT), make_plan(**FLAT, regions=((2, 5), (5,)))
    assert outlined(masks_of(reference, labels), labels).tolist() == [[[[0, 1], [0, 0]], [[0, 0], [1, 0]]]]
    assert outlined(masks_of(reference, regions), regions).tolist() == [[[[0, 1], [1, 0]], [[0, 0], [1, 0]]]]
    assert outlined(torch.ones(1, 1, 2, 2), make_plan(**FLAT, task="regression")).shape == (1, 0, 2, 2)


def test_a_regression_shows_image_reference_and_output_beside_each_other():
    image = torch.randn(1, 1, 9, 11)
    assert len(result_tiles(image, image, image, make_plan(**FLAT, task="regression"))) == 3


def test_a_tile_has_its_first_row_below_and_its_reference_beneath_its_prediction():
    grey = np.zeros((10, 12), np.float32)
    grey[0] = 1
    picture = figures.tile(grey, window=(0, 1))
    assert picture[-1].min() == 255 and picture[0].max() == 0
    mask = np.zeros((1, 10, 12), bool)
    mask[0, 4:7, 4:8] = True
    both = figures.tile(grey, window=(0, 1), reference=mask, prediction=mask)
    assert has_colour(both, RED) and not has_colour(figures.tile(grey, window=(0, 1), reference=mask), RED)


def test_tiles_of_any_size_are_arranged_without_overlap():
    small, large = np.full((5, 4, 3), 1, np.uint8), np.full((7, 9, 3), 2, np.uint8)
    sheet = figures.arrange([[small, large], [large]])
    assert sheet.shape == (7 + 7 + figures.TILE_GAP, 4 + 9 + figures.TILE_GAP, 3)
    assert ((sheet == 1).sum(), (sheet == 2).sum()) == (small.size, 2 * large.size)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("changes", [{}, FLAT], ids=["3d", "2d"])
def test_augmented_patches_are_drawn_below_the_originals(changes, channels):
    plan = make_plan(**changes, channels=("MRI",) * channels)
    png = augmented_sheet([source(channels)], plan.patch_size, plan, OPTIONS, find_mirrors(plan, ["x"]), (1, 0))
    pixels = imread(io.BytesIO(png), format="png")
    rows, columns = plan.patch_size[-2:]
    assert pixels.shape[0] / pixels.shape[1] == pytest.approx(2 * channels * rows / (6 * columns), rel=0.1)
    halves = np.array_split(pixels[: len(pixels) // channels], 2)
    assert not np.array_equal(*halves), "some patch has changed"
    assert (
        augmented_sheet([source(channels)], plan.patch_size, plan, OPTIONS, find_mirrors(plan, ["x"]), (1, 0)) == png
    ), "the same seed, the same picture"
