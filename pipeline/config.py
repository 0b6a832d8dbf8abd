"""From what the user wrote in config.yaml or after `--config` to a complete configuration, or one line that says what is wrong.

Knows the schema; does not look at the cohort or at any result.
"""

import difflib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from pipeline.errors import ConfigError
from pipeline.regions import crossing, painted_values

if TYPE_CHECKING:
    from jsonschema import ValidationError

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the fast one, where it was built
SCHEMA = yaml.load((Path(__file__).parent / "config.schema.yaml").read_text(), LOADER)
DEMO = "demo"  # in place of a cohort's folder
LOW_RESOLUTION = "3d_lowres"  # planned by a rule of its own, and left out where full resolution suffices
CASCADE = "3d_cascade_fullres"
PREVIOUS = {CASCADE: LOW_RESOLUTION}  # configurations that refine the masks of another one
DEFAULT_DIMS = {"2d": 2, "3d_fullres": 3, LOW_RESOLUTION: 3, CASCADE: 3}
ONLY_FOR = {"padded": "classic_unet", "encoder": "backbone_unet", "preset": "residual_unet"}  # network of a setting
BUDGETS = ("minutes", "epochs", "iterations")
DEFAULT_BUDGET = {"minutes": 60}
OVERLAP_LOSSES = ("dice", "focal", "dice_focal", "tversky", "generalized_dice")
LOSSES = {
    "labels": ("dice_ce", "ce", "topk_ce", *OVERLAP_LOSSES),
    "regions": ("dice_bce", "bce", *OVERLAP_LOSSES),
    "regression": ("mse", "mae"),
}
FOR_ALL = ("normalisation", "bias_correction", "resampling")  # what every configuration does with a scan
UNWEIGHTED = ("generalized_dice", "mse", "mae")


def with_previous(chosen: Sequence[str]) -> list[str]:
    """The configurations and those whose masks they refine, each once."""
    return list(dict.fromkeys([*chosen, *(PREVIOUS[name] for name in chosen if name in PREVIOUS)]))


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with every default filled in.

    Raises:
        ConfigError: names the key, what was found and what was expected.
    """
    from jsonschema import Draft202012Validator  # only the Snakefile checks; every stage would pay for the import

    full = _as_typed(_as_written_by_hand(config), SCHEMA)
    errors = sorted(Draft202012Validator(SCHEMA).iter_errors(full), key=lambda error: len(error.absolute_path))
    if errors:
        raise ConfigError("; ".join(dict.fromkeys(_explain(error) for error in errors)))
    _fill_defaults(full, SCHEMA)
    _complete_configurations(full["configurations"])
    _complete_budget(full["train"])
    _check_regions(full["regions"])
    _check_labels(full)
    _complete_loss(full)
    _check_mirrors(full["train"]["mirror"])
    _check_effect(full["train"], full["predict"])
    _check_folds(full)
    _check_previous(full)
    return full


def settings_of(config: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """What `plan` is asked for: the configuration's own section, what all do with a scan, and whether a clock may decide."""
    for_all = {key: config[key] for key in FOR_ALL}
    return {**config["configurations"][configuration], **for_all, "deterministic": config["train"]["deterministic"]}


def _as_written_by_hand(config: Mapping[str, Any]) -> dict[str, Any]:
    """Accept the short forms: a list of configurations, an empty section, numbers as keys of `labels`."""
    full = {key: value for key, value in config.items() if value is not None}
    if isinstance(full.get("configurations"), list):
        full["configurations"] = {str(name): {} for name in full["configurations"]}
    for section in ("configurations", "labels", "channels", "normalisation", "regions"):
        if isinstance(full.get(section), Mapping):
            full[section] = {str(key): {} if value is None else value for key, value in full[section].items()}
    return full


def _as_typed(value: Any, schema: Mapping[str, Any]) -> Any:
    """Numbers and truth values where the schema wants them: Snakemake hands those inside `--config key={...}` over as text."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    if isinstance(value, Mapping):
        others = schema.get("additionalProperties") or {}
        parts = schema.get("properties", {})
        return {key: _as_typed(part, parts.get(key, others)) for key, part in value.items()}
    if isinstance(value, list):
        items: Mapping[str, Any] = next(
            (one["items"] for one in (schema, *schema.get("oneOf", ())) if "items" in one), {}
        )
        return [_as_typed(part, items) for part in value]
    is_wanted_otherwise = schema.get("type") in ("number", "integer", "boolean") or value not in schema.get(
        "enum", [value]
    )
    if isinstance(value, str) and is_wanted_otherwise:
        with suppress(yaml.YAMLError):  # what is no value at all is for the schema to refuse
            typed = yaml.safe_load(value)
            return typed if isinstance(typed, int | float) else value
    return value


def _explain(error: "ValidationError") -> str:
    schema, full = cast(dict[str, Any], error.schema), cast(dict[str, Any], error.instance)
    place = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = schema["properties"]
        return "; ".join(_explain_unknown_key(key, place, known) for key in full if key not in known)
    if error.validator == "required":
        missing = [key for key in schema["required"] if key not in full]
        return f"config: {' and '.join(missing)} missing. Two lines are needed: `name:` and `cohort:`."
    return (
        f"config: {place or 'config'} is {error.instance!r}: {error.message.removeprefix(repr(error.instance)).strip()}"
    )


def _explain_unknown_key(key: str, place: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(known)}."
    return f"config: unknown key {'.'.join(filter(None, (place, key)))!r}. {hint}"


def _fill_defaults(value: dict[str, Any], schema: Mapping[str, Any]) -> None:
    for key, part in schema.get("properties", {}).items():
        if "default" in part and key not in value:
            value[key] = _copy(part["default"])
        if isinstance(value.get(key), dict):
            _fill_defaults(value[key], part)


def _copy(default: Any) -> Any:
    return {key: _copy(part) for key, part in default.items()} if isinstance(default, dict) else default


def _complete_configurations(configurations: dict[str, dict[str, Any]]) -> None:
    for name, configuration in configurations.items():
        if "dims" not in configuration and name not in DEFAULT_DIMS:
            raise ConfigError(
                f"config: configurations.{name} needs `dims: 2` or `dims: 3`; "
                f"only {', '.join(DEFAULT_DIMS)} are known without it."
            )
        given = list(configuration)
        configuration.setdefault("dims", DEFAULT_DIMS.get(name))
        _fill_defaults(configuration, SCHEMA["$defs"]["configuration"])
        for key, owner in ONLY_FOR.items():
            if key in given and configuration["network"] != owner:
                raise ConfigError(
                    f"config: configurations.{name}.{key} is {configuration[key]!r}, yet only {owner} takes it and the "
                    f"network is {configuration['network']}. Remove it."
                )
        if "patch_size" in configuration and len(configuration["patch_size"]) != configuration["dims"]:
            raise ConfigError(
                f"config: configurations.{name}.patch_size is {configuration['patch_size']}: "
                f"{configuration['dims']} numbers expected, for dims is {configuration['dims']}."
            )


def _complete_budget(train: dict[str, Any]) -> None:
    given = [key for key in BUDGETS if key in train]
    if len(given) > 1:
        raise ConfigError(f"config: train has {' and '.join(given)}: one budget expected. Remove the others.")
    if not given:
        train.update(DEFAULT_BUDGET)


def fitting_losses(task: str, has_regions: bool) -> tuple[str, ...]:
    """Losses that can train what such a network puts out, the default first."""
    return LOSSES["regions" if has_regions else "labels"] if task == "segmentation" else LOSSES[task]


def _complete_loss(config: dict[str, Any]) -> None:
    train, has_regions = config["train"], bool(config["regions"])
    fitting = fitting_losses(config["task"], has_regions)
    loss = train.setdefault("loss", fitting[0])
    if loss not in fitting:
        outputs = "labels that may overlap (`regions`)" if has_regions else config["task"]
        raise ConfigError(f"config: train.loss is {loss!r}, for {outputs} one of {', '.join(fitting)} expected.")
    weights = train["class_weights"]
    if weights and loss in UNWEIGHTED:
        raise ConfigError(f"config: train.class_weights is {weights}, yet {loss} takes none. Remove it.")
    if weights and not any(weights if has_regions else weights[1:]):
        raise ConfigError(f"config: train.class_weights is {weights}: one above 0 expected, besides the background's.")


def _check_regions(regions: Mapping[str, list[int]]) -> None:
    for name, value in zip(regions, painted_values(list(regions.values())), strict=True):
        if not value:
            raise ConfigError(
                f"config: regions.{name} is {regions[name]}: one value that no later region has expected, to stand for it "
                "in a mask. Put larger regions first."
            )
    if places := crossing(list(regions.values())):
        earlier, later = (list(regions)[place] for place in places)
        raise ConfigError(
            f"config: regions.{later} is {regions[later]}, regions.{earlier} is {regions[earlier]}: they overlap, yet "
            f"{later} is no part of {earlier}. Nest them or keep them apart."
        )


def _check_labels(config: dict[str, Any]) -> None:
    ignored = config.get("ignore_label")
    inside = [name for name, values in config["regions"].items() if ignored in values]
    if inside:
        raise ConfigError(
            f"config: ignore_label is {ignored}, yet regions.{inside[0]} has it. Remove it from one of them."
        )
    given = [key for key in ("labels", "regions", "ignore_label") if config[key]]
    if given and config["task"] == "regression":
        raise ConfigError(f"config: {given[0]} is {config[given[0]]}, yet a regression has no labels. Remove it.")


def _check_mirrors(mirrors: list[str | dict[str, Any]]) -> None:
    axes = [mirror if isinstance(mirror, str) else mirror["axis"] for mirror in mirrors]
    if repeated := sorted({axis for axis in axes if axes.count(axis) > 1}):
        raise ConfigError(f"config: train.mirror names {repeated[0]} twice. Give all pairs of an axis in one `swap`.")
    for axis, mirror in zip(axes, mirrors, strict=True):
        labels = [label for pair in mirror.get("swap", []) for label in pair] if isinstance(mirror, dict) else []
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ConfigError(
                f"config: train.mirror swaps label {twice[0]} twice along {axis}: each has one counterpart."
            )


def _check_effect(train: Mapping[str, Any], predict: Mapping[str, Any]) -> None:
    """Refuse what would change nothing."""
    if train["artefacts"] and not train["augment"]:
        raise ConfigError(
            f"config: train.artefacts is {train['artefacts']}, yet train.augment is false. Remove one of them."
        )
    if predict.get("mirror") and not train["mirror"]:
        raise ConfigError(
            "config: predict.mirror is true, yet train.mirror names no axis. Name axes there, or remove it."
        )


def _check_folds(config: dict[str, Any]) -> None:
    if config["run_folds"] == "all":
        config["run_folds"] = list(range(config["folds"]))
    beyond = [fold for fold in config["run_folds"] if fold >= config["folds"]]
    if beyond:
        raise ConfigError(
            f"config: run_folds has {beyond}, yet folds is {config['folds']}: 0 to {config['folds'] - 1} exist."
        )


def _check_previous(config: dict[str, Any]) -> None:
    """A mask is needed of every case that a cascade is trained with, from a network that never saw the case."""
    names = list(config["configurations"])
    for name, previous in PREVIOUS.items():
        if name not in names:
            continue
        if config["task"] == "regression":
            raise ConfigError(
                f"config: configurations has {name}, which refines masks, yet a regression has none. Remove it."
            )
        if previous not in names:
            listed = ", ".join([*names[: names.index(name)], previous, *names[names.index(name) :]])
            raise ConfigError(
                f"config: configurations has {name}, which refines the masks of {previous}, yet not {previous}. "
                f"Add it: `configurations: [{listed}]`."
            )
        if len(config["run_folds"]) < config["folds"]:
            raise ConfigError(
                f"config: run_folds is {config['run_folds']}, yet {name} learns from masks of all cases, which {previous} "
                f"predicts fold by fold. Set `run_folds: all`, or remove {name}."
            )
