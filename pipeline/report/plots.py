"""The tables of a run to curves and points, as the bytes of an SVG. Opens no file; colours and looks are those of `figures`."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from pipeline.figures import INK, as_bytes, sober

LARGEST_CURVE = 400  # points
LARGEST_PANELS = 12  # labels of which volumes are drawn; the table beside has all
PANEL_COLUMNS = 3
RASTERED = 200  # points of a panel from which on they are one picture

Progress = Mapping[tuple[str, int], pd.DataFrame]  # by configuration and fold: progress.tsv of one training


def dsc_distribution(metrics: pd.DataFrame, colours: Mapping[str, str]) -> bytes:
    """SVG: a box with every case as a point, per label and configuration; says so where there is no value.

    Args:
        metrics: columns configuration, label, name, dsc (NaN = no value).
        colours: of every label, in the order to draw them.
    """
    configurations = list(dict.fromkeys(metrics["configuration"]))
    names = dict(zip(metrics["label"], metrics["name"], strict=True))
    num_rows = len(names) * (len(configurations) + 1)
    figure = Figure(figsize=(9, 0.7 + 0.27 * num_rows), layout="constrained")
    axes = figure.add_subplot()
    ticks: list[tuple[int, str, bool]] = []
    for label in [label for label in colours if label in names]:
        ticks.append((len(ticks), names[label], True))
        for configuration in configurations:
            rows = metrics[(metrics["label"] == label) & (metrics["configuration"] == configuration)]
            _box_with_points(axes, rows["dsc"].dropna().to_numpy(), len(ticks), colours[label])
            ticks.append((len(ticks), configuration, False))
    axes.set_yticks([y for y, _, _ in ticks], [text for _, text, _ in ticks], parse_math=False, color=INK)
    for tick, (_, _, is_heading) in zip(axes.get_yticklabels(), ticks, strict=True):
        tick.set_fontweight("bold" if is_heading else "normal")
    lowest = metrics["dsc"].min()
    low = 0.0 if not lowest > 0 else np.floor(lowest * 10) / 10
    axes.set(
        xlim=(low - 0.01, 1.01),
        ylim=(len(ticks) - 0.5, -0.6),
    )
    axes.set_xlabel("DSC", fontsize=8, color=INK)
    sober(axes)
    axes.tick_params(axis="y", length=0)
    return as_bytes(figure, "svg")


def label_volumes(volumes_ml: Sequence[Mapping[str, float]], colours: Mapping[str, str]) -> bytes:
    """SVG: the volume of each label as a box with every case that has it as a point, on a logarithmic axis.

    Args:
        volumes_ml: of each case by the name of the label; one above 0 at least.
        colours: of every label by name, in the order to draw them.
    """
    figure = Figure(figsize=(9, 0.7 + 0.4 * len(colours)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ml, _: f"{ml:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    for y, (name, colour) in enumerate(colours.items()):
        _box_with_points(axes, np.array([own[name] for own in volumes_ml if own[name]]), y, colour)
    axes.set_yticks(range(len(colours)), list(colours), parse_math=False, color=INK)
    axes.set(ylim=(len(colours) - 0.4, -0.6))
    axes.set_xlabel("ml", fontsize=8, color=INK)
    sober(axes)
    axes.tick_params(axis="y", length=0)
    return as_bytes(figure, "svg")


def _box_with_points(axes: Axes, values: NDArray[np.floating], y: int, colour: str) -> None:
    if not len(values):
        axes.text(
            0.01, y, "no value", transform=axes.get_yaxis_transform(), color="#6b7280", va="center", style="italic"
        )
        return
    spread = 0.24 * np.sin(2.4 * np.arange(len(values)))  # looks random, is not
    axes.scatter(
        values, y + spread, s=11, color=colour, alpha=0.65, edgecolors=INK, linewidths=0.2, rasterized=len(values) > 200
    )
    line = {"color": INK, "linewidth": 1}
    axes.boxplot(
        [values], positions=[y], orientation="horizontal", widths=0.62, showfliers=False, manage_ticks=False,
        boxprops=line, whiskerprops=line, capprops=line, medianprops=line | {"linewidth": 2},
    )  # fmt: skip


def learning_curves(progress: Progress) -> bytes:
    """SVG: per configuration the losses and, if it was ever measured, the validation DSC over the steps, one colour per fold.

    Args:
        progress: not empty; columns step, train_loss, validation_loss, validation_dsc, NaN = not measured.
    """
    configurations = list(dict.fromkeys(configuration for configuration, _ in progress))
    folds = sorted({fold for _, fold in progress})
    colours = dict(zip(folds, colormaps["cividis"](np.linspace(0, 0.85, len(folds))), strict=True))
    figure = Figure(figsize=(9, 0.5 + 2.1 * len(configurations)), layout="constrained")
    has_dsc = any(table["validation_dsc"].notna().any() for table in progress.values())
    titles = ("loss", "validation DSC") if has_dsc else ("loss",)
    panels = figure.subplots(len(configurations), len(titles), squeeze=False)
    for (configuration, fold), table in progress.items():
        row = panels[configurations.index(configuration)]
        for axes, column, style in (
            (row[0], "train_loss", ":"),
            (row[0], "validation_loss", "-"),
            *([(row[1], "validation_dsc", "-")] if has_dsc else []),
        ):
            curve = table[["step", column]].dropna()
            curve = curve.iloc[:: max(1, len(curve) // LARGEST_CURVE)]
            marker = "o" if len(curve) == 1 else None
            axes.plot(curve["step"], curve[column], style, color=colours[fold], linewidth=1.3, marker=marker)
    for configuration, row in zip(configurations, panels, strict=True):
        for axes, title in zip(row, titles, strict=True):
            axes.set_title(f"{configuration}: {title}", parse_math=False)
            axes.title.set(fontsize=9, color=INK)
            axes.set_xlabel("step", fontsize=8)
            sober(axes)
    styles = [Line2D([], [], color=INK, linestyle=":", label="training"), Line2D([], [], color=INK, label="validation")]
    folds_shown = [Line2D([], [], color=colour, linewidth=3, label=f"fold {fold}") for fold, colour in colours.items()]
    figure.legend(handles=[*styles, *folds_shown], loc="outside lower center", ncols=8, frameon=False, fontsize=8)
    return as_bytes(figure, "svg")


def volume_agreement(
    metrics: pd.DataFrame, limits: Mapping[str, tuple[float, float, float]], colours: Mapping[str, str]
) -> bytes:
    """SVG after Bland and Altman: a panel per label, the difference of mask and reference over the mean of both volumes.

    Args:
        metrics: of one configuration; columns label, name, reference_ml, prediction_ml.
        limits: mean difference, lower and upper limit of agreement in ml (NaN = too few cases), of the labels to draw.
        colours: of every label.
    """
    shown = [*limits][:LARGEST_PANELS]
    num_columns = min(PANEL_COLUMNS, len(shown))
    num_rows = -(-len(shown) // num_columns)
    figure = Figure(figsize=(9, 0.3 + 2.4 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes, label in zip(panels, shown, strict=False):
        rows = metrics[metrics["label"] == label]
        mean_ml = (rows["reference_ml"] + rows["prediction_ml"]) / 2
        difference_ml = rows["prediction_ml"] - rows["reference_ml"]
        axes.scatter(
            mean_ml, difference_ml, s=12, color=colours[label], alpha=0.7, edgecolors=INK, linewidths=0.3,
            rasterized=len(rows) > RASTERED,
        )  # fmt: skip
        for value_ml, style in zip(limits[label], ("-", "--", "--"), strict=True):
            if np.isfinite(value_ml):
                axes.axhline(value_ml, color=INK, linestyle=style, linewidth=1)
        axes.set_title(rows["name"].iloc[0], parse_math=False)
        axes.title.set(fontsize=9, color=INK)
        sober(axes)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    figure.supxlabel("mean of mask and reference, ml", fontsize=8, color=INK)
    figure.supylabel("mask − reference, ml", fontsize=8, color=INK)
    return as_bytes(figure, "svg")
