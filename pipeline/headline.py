"""What a run that ends says in the terminal: how good each configuration is, and where the results lie.

Plain text without colours, the same in a terminal, a log and a pipe. Measures nothing: reads `summary.tsv`.
"""

from collections.abc import Mapping

from pipeline.evaluate import ENSEMBLE
from pipeline.paths import Results
from pipeline.records import aligned, read_table
from pipeline.summary import MEAN

Row = Mapping[str, str]


def headline(files: Results) -> str:
    """The means over labels, one line per configuration, and the paths."""
    rows = read_table(files.summary)
    if "mae" in rows[0]:
        table = [_of_values(row) for row in rows]
    else:
        means = [row for row in rows if row["label"] == MEAN]
        table = [_of_labels(row) for row in means]
    names = [row["configuration"] for row in rows]
    best = ENSEMBLE if ENSEMBLE in names else names[0]
    paths = {
        "report": files.report.resolve().as_uri(),
        "masks": files.mask(best, "").parent,
        "measures": f"{files.metrics}, {files.summary.name}, {files.comparison.name}",
    }
    return "\n".join(["", *aligned([*table[0]], table), "", *(f"{what}: {path}" for what, path in paths.items())])


def _of_labels(row: Row) -> dict[str, str]:
    return {
        "configuration": row["configuration"],
        "DSC (95 % interval)": _with_interval(row, "dsc", ".3f"),
        f"NSD at {row['tolerance_mm']} mm": _with_interval(row, "nsd", ".3f"),
        "HD95 in mm, failures counted": _with_interval(row, "hd95_worst_mm", ".2f"),
        "missed": row["n_missed"],
        "false positive": row["n_false_positive"],
        "of": row["n_used"],
    }


def _of_values(row: Row) -> dict[str, str]:
    return {
        "configuration": row["configuration"],
        "MAE (95 % interval)": _with_interval(row, "mae", ".4g"),
        "RMSE": _with_interval(row, "rmse", ".4g"),
        "of": row["n"],
    }


def _with_interval(row: Row, measure: str, form: str) -> str:
    """`none` without a value; no interval where there is none, as of a single subject."""
    mean, low, high = (row[f"{measure}{end}"] for end in ("", "_low", "_high"))
    text = f"{float(mean):{form}}" if mean else "none"
    return f"{text} ({float(low):{form}} to {float(high):{form}})" if low and high else text
