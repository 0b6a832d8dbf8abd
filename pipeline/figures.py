"""Scans, masks and patches to the bytes of the report's pictures, and those that a training leaves behind.

Owner of the colours: one per label, the same in every figure and beside its name in the text. Opens no file, chooses no
case, and leaves no state in matplotlib: every function draws on a figure of its own.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread, imsave
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.images import Segmentation, Spacing, Volume

# Source: Okabe and Ito 2008, Color Universal Design; black left out, light yellow last.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#F0E442")
INK, FAINT = "#1f2933", "#c9d1d9"
CT_WINDOW_HU = (-160.0, 240.0)  # soft tissue
GREY_PERCENTILES = (1.0, 99.5)  # of anything that is not CT
MARGIN_MM, MARGIN_SHARE = 12.0, 0.3  # around the labels, the larger of both
OVERLAY_SIZE_INCHES = (8.6, 3.6)  # at most
REFERENCE_LINE: dict[str, Any] = {"linewidths": 3.2, "alpha": 0.5}
PREDICTION_LINE: dict[str, Any] = {
    "linewidths": 1.2,
    "path_effects": [withStroke(linewidth=2.2, foreground="black", alpha=0.55)],
}
TILE_EDGE = 160  # pixels, about, of the longer edge of a patch's picture
TILE_GAP = 6  # pixels between two
TILE_REFERENCE, TILE_PREDICTION = (3, 0.55), (1, 1.0)  # width in pixels and opacity of an outline
LARGEST_PATCH_CHANNELS = 3  # drawn
JPEG: dict[str, Any] = {"quality": 75, "subsampling": 0}  # no chroma subsampling: it blurs thin coloured lines
VALUES, DIFFERENCE = "cividis", "RdBu_r"  # colours of predicted values, and of how far they are off: 0 is white
AXIS_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))  # at the low and the high end of each RAS axis

Slice = NDArray[np.floating]  # (H, W)
Masks = Sequence[NDArray[np.bool_]] | NDArray[np.bool_]  # of the labels of a slice, each (H, W)
Picture = NDArray[np.uint8]  # (rows downwards, columns, RGB)
Window = tuple[float, float]  # the values shown black and white


@dataclass(frozen=True)
class Plane:
    """A slice across `across`, drawn with RAS axis `x` to the right and `y` upwards."""

    name: str
    across: int
    x: int
    y: int


PLANES = (Plane("axial", 2, 0, 1), Plane("coronal", 1, 0, 2), Plane("sagittal", 0, 1, 2))


def label_colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour-blind-safe colour per label, from the start again after seven."""
    return {label: PALETTE[index % len(PALETTE)] for index, label in enumerate(labels)}


def colour_table(name: str) -> list[str]:
    """The 256 colours of one of matplotlib's tables."""
    return [to_hex(colour) for colour in colormaps[name](range(256))]


def grey_window(volume: Volume | Slice, *, is_ct: bool) -> Window:
    """Of a volume or a slice; a constant one gets a window of width 1."""
    if is_ct:
        return CT_WINDOW_HU
    low, high = np.percentile(volume, GREY_PERCENTILES)
    return float(low), float(high) if high > low else float(low) + 1


def label_centre(reference: Segmentation, prediction: Segmentation) -> tuple[int, ...]:
    """The labelled voxel nearest to the centroid of all labels: of the reference, else of the prediction, else the middle."""
    for segmentation in (reference, prediction):
        voxels = np.argwhere(segmentation > 0)
        if len(voxels):
            nearest = np.abs(voxels - voxels.mean(axis=0)).sum(axis=1).argmin()
            return tuple(int(index) for index in voxels[nearest])
    return tuple(size // 2 for size in reference.shape)


def label_box(segmentation: Segmentation, spacing_mm: Spacing) -> tuple[slice, ...]:
    """The box around all labels and a margin, in voxels; the whole volume without labels."""
    voxels = np.argwhere(segmentation > 0)
    if not len(voxels):
        return tuple(slice(0, size) for size in segmentation.shape)
    low, high = voxels.min(axis=0), voxels.max(axis=0) + 1
    margin_mm = max(MARGIN_MM, MARGIN_SHARE * float(((high - low) * spacing_mm).max()))
    margin = np.ceil(margin_mm / np.asarray(spacing_mm)).astype(int)
    starts, stops = np.maximum(low - margin, 0), np.minimum(high + margin, segmentation.shape)
    return tuple(slice(int(start), int(stop)) for start, stop in zip(starts, stops, strict=True))


def overlay(
    volume: Volume,
    reference: Segmentation,
    prediction: Segmentation,
    *,
    spacing_mm: Spacing,
    window: Window,
    colours: Mapping[int, str],
) -> bytes:
    """JPEG of three planes through the labels: the reference as a broad pale contour, the prediction as a thin line.

    Args:
        volume, reference, prediction: (I, J, K) in RAS order: right, anterior and superior are drawn right and up.
        window: the values shown black and white.
        colours: of every label to draw.
    """
    centre = label_centre(reference, prediction)
    box = label_box(np.maximum(reference, prediction), spacing_mm)
    size_mm = [(part.stop - part.start) * mm for part, mm in zip(box, spacing_mm, strict=True)]
    gap_mm = 0.02 * sum(size_mm[plane.x] for plane in PLANES)
    wide_mm = sum(size_mm[plane.x] for plane in PLANES) + 2 * gap_mm
    high_mm = max(size_mm[plane.y] for plane in PLANES)
    inches_per_mm = min(OVERLAY_SIZE_INCHES[0] / wide_mm, OVERLAY_SIZE_INCHES[1] / high_mm)
    figure = Figure(figsize=(wide_mm * inches_per_mm, high_mm * inches_per_mm), facecolor="black")
    left_mm = 0.0
    for plane in PLANES:
        width_mm, height_mm = size_mm[plane.x], size_mm[plane.y]
        bottom = (1 - height_mm / high_mm) / 2
        axes = figure.add_axes((left_mm / wide_mm, bottom, width_mm / wide_mm, height_mm / high_mm))
        grey, *masks = (_slice(array, plane, centre, box) for array in (volume, reference, prediction))
        extent_mm = (0.0, width_mm, 0.0, height_mm)
        axes.imshow(
            grey, "gray", vmin=window[0], vmax=window[1], origin="lower", extent=extent_mm, interpolation="bilinear"
        )
        for mask, style in zip(masks, (REFERENCE_LINE, PREDICTION_LINE), strict=True):
            _contours(axes, mask, extent_mm, colours, style)
        _orientation_letters(axes, plane)
        axes.set_axis_off()
        axes.set(xlim=extent_mm[:2], ylim=extent_mm[2:])
        left_mm += width_mm + gap_mm
    return as_bytes(figure, "jpeg", dpi=115)


def _slice(array: NDArray[Any], plane: Plane, centre: Sequence[int], box: Sequence[slice]) -> NDArray[Any]:
    """(rows upwards, columns to the right) of one plane."""
    index: list[int | slice] = list(box)
    index[plane.across] = centre[plane.across]
    return array[tuple(index)].T  # the remaining axes are in the order x, y


def _contours(
    axes: Axes, labels: NDArray[Any], extent_mm: tuple[float, ...], colours: Mapping[int, str], style: Mapping[str, Any]
) -> None:
    rows, columns = labels.shape
    x_mm = (np.arange(-1, columns + 1) + 0.5) * extent_mm[1] / columns
    y_mm = (np.arange(-1, rows + 1) + 0.5) * extent_mm[3] / rows
    for label in np.unique(labels):
        if int(label) in colours:
            mask = np.pad(labels == label, 1).astype(np.float32)  # closes a contour at the edge of the picture
            drawn = axes.contour(x_mm, y_mm, mask, levels=[0.5], colors=[colours[int(label)]])
            drawn.set(**style)


def _orientation_letters(axes: Axes, plane: Plane) -> None:
    (left, right), (bottom, top) = AXIS_LETTERS[plane.x], AXIS_LETTERS[plane.y]
    places = {left: (0.02, 0.5), right: (0.98, 0.5), bottom: (0.5, 0.02), top: (0.5, 0.98)}
    for letter, (x, y) in places.items():
        across = {0.02: "left", 0.5: "center", 0.98: "right"}[x]
        up = {0.02: "bottom", 0.5: "center", 0.98: "top"}[y]
        text = axes.text(x, y, letter, transform=axes.transAxes, color="white", fontsize=8, ha=across, va=up)
        text.set_path_effects([withStroke(linewidth=1.5, foreground="black")])


def tile(grey: Slice, *, window: Window | None = None, reference: Masks = (), prediction: Masks = ()) -> Picture:
    """(H, W) enlarged by a whole factor, first row below; masks (H, W) as broad pale and as thin outlines.

    Without a window, the slice has its own. Masks have the colours of the labels in the same order.
    """
    low, high = window or grey_window(grey, is_ct=False)
    scale = max(1, round(TILE_EDGE / max(grey.shape)))
    shade = np.nan_to_num((grey.astype(np.float32) - low) / (high - low)).clip(0, 1) * 255  # what is no number: black
    picture = np.repeat(_enlarged(shade, scale)[..., None], 3, axis=2)
    for masks, (width, opacity) in ((reference, TILE_REFERENCE), (prediction, TILE_PREDICTION)):
        for index, mask in enumerate(masks):
            large = _enlarged(mask.astype(np.float32), scale) >= 0.5
            line = large & ~ndimage.binary_erosion(large, iterations=width)  # closed at the edge of the picture
            colour = np.array(to_rgb(PALETTE[index % len(PALETTE)])) * 255
            picture[line] = (1 - opacity) * picture[line] + opacity * colour
    return picture[::-1].round().astype(np.uint8)


def _enlarged(array: NDArray[np.float32], scale: int) -> NDArray[np.float32]:
    """Linear, voxel centres in place, the edge continued."""
    return ndimage.zoom(array, scale, order=1, mode="nearest", grid_mode=True)


def arrange(rows: Sequence[Sequence[Picture]]) -> Picture:
    """Tiles of any size in rows on black, with gaps; shorter rows end earlier."""
    padded = [[np.pad(one, ((0, TILE_GAP), (0, TILE_GAP), (0, 0))) for one in row] for row in rows]
    heights = [max(len(one) for one in row) for row in padded]
    sheet = np.zeros((sum(heights), max(sum(one.shape[1] for one in row) for row in padded), 3), np.uint8)
    for row, bottom, height in zip(padded, np.cumsum(heights), heights, strict=True):
        left = 0
        for one in row:
            sheet[bottom - height :][: len(one), left : left + one.shape[1]] = one
            left += one.shape[1]
    return sheet[:-TILE_GAP, :-TILE_GAP]


def before_and_after(
    before: NDArray[np.floating],
    after: NDArray[np.floating],
    masks_before: NDArray[np.bool_],
    masks_after: NDArray[np.bool_],
) -> bytes:
    """PNG of slices (N, C, H, W) with masks (N, K, H, W): a row as they are and one as they became, channel by channel.

    Both rows have the grey window of the first, so that a change of brightness is seen.
    """
    rows: list[list[Picture]] = []
    for channel in range(min(LARGEST_PATCH_CHANNELS, before.shape[1])):
        windows = [grey_window(image[channel], is_ct=False) for image in before]
        for images, masks in ((before, masks_before), (after, masks_after)):
            shown = zip(images[:, channel], masks, windows, strict=True)
            rows.append([tile(grey, window=window, reference=outlines) for grey, outlines, window in shown])
    buffer = io.BytesIO()
    imsave(buffer, arrange(rows), format="png")
    return buffer.getvalue()


def as_jpeg(png: bytes) -> bytes:
    """A picture at a fraction of its size."""
    buffer = io.BytesIO()
    imsave(buffer, imread(io.BytesIO(png), format="png"), format="jpeg", pil_kwargs=JPEG)
    return buffer.getvalue()


def sober(axes: Axes) -> None:
    """A faint grid, and as few lines and as small letters as do."""
    axes.grid(axis="both", color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)


def as_bytes(figure: Figure, kind: str, *, dpi: int = 150) -> bytes:
    options: dict[str, Any] = {"svg": {"metadata": {"Date": None}}, "jpeg": {"pil_kwargs": JPEG}}
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "report"}):  # same input, same bytes
        figure.savefig(buffer, format=kind, dpi=dpi, **options[kind])
    return buffer.getvalue()
