import re
from pathlib import Path

import pytest
import yaml

from pipeline.config import SCHEMA, complete
from pipeline.errors import ConfigError

TWO_LINES = {"name": "hippocampus", "cohort": "scans"}
CONFIG = (Path(__file__).parents[1] / "config.yaml").read_text()


def test_two_lines_are_enough():
    config = complete(TWO_LINES)
    assert config["folds"] == 5
    assert config["run_folds"] == [0, 1, 2, 3, 4]
    assert {name: part["dims"] for name, part in config["configurations"].items()} == {"2d": 2, "3d_fullres": 3}
    assert config["train"]["minutes"] == 60


def test_configurations_may_be_a_list_of_known_names():
    assert list(complete({**TWO_LINES, "configurations": ["3d_fullres"]})["configurations"]) == ["3d_fullres"]


def test_completing_leaves_the_users_own_mapping_untouched():
    given = {**TWO_LINES, "train": {"minutes": 3}, "configurations": {"2d": None}}
    complete(given)
    assert given == {**TWO_LINES, "train": {"minutes": 3}, "configurations": {"2d": None}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flods": 3}, "unknown key 'flods'. Did you mean 'folds'?"),
        ({"train": {"minuts": 3}}, "unknown key 'train.minuts'. Did you mean 'minutes'?"),
        ({"zzz": 1}, "unknown key 'zzz'. Known keys: name, cohort"),
        ({"folds": "many"}, "folds is 'many': is not of type 'integer'"),
        ({"folds": 1}, "folds is 1: is less than the minimum of 2"),
        ({"name": "a b"}, "name is 'a b'"),
        ({"name": "../up"}, "name is '../up'"),
        ({"run_folds": [7]}, "run_folds has [7], yet folds is 5: 0 to 4 exist"),
        ({"train": {"minutes": 3, "epochs": 2}}, "train has minutes and epochs: one budget expected"),
        ({"configurations": ["attention"]}, "configurations.attention needs `dims: 2` or `dims: 3`"),
        ({"configurations": ["3d_high"]}, "only 2d, 3d_fullres, 3d_lowres, 3d_cascade_fullres are known without it"),
        (
            {"configurations": ["2d", "3d_cascade_fullres"]},
            "has 3d_cascade_fullres, which refines the masks of 3d_lowres, yet not 3d_lowres. "
            "Add it: `configurations: [2d, 3d_lowres, 3d_cascade_fullres]`.",
        ),
        (
            {"configurations": ["3d_lowres", "3d_cascade_fullres"], "run_folds": [0, 2]},
            "run_folds is [0, 2], yet 3d_cascade_fullres learns from masks of all cases, which 3d_lowres predicts fold by "
            "fold. Set `run_folds: all`, or remove 3d_cascade_fullres.",
        ),
        (
            {"configurations": ["3d_lowres", "3d_cascade_fullres"], "task": "regression"},
            "has 3d_cascade_fullres, which refines masks, yet a regression has none. Remove it.",
        ),
        (
            {"normalisation": {0: "minmax"}},
            "normalisation.0 is 'minmax': is not one of ['ct', 'zscore', 'zscore_nonzero', 'percentile', 'rescale', 'none']",
        ),
        ({"configurations": {"ensemble": {"dims": 3}}}, "configurations"),
        ({"configurations": {"2d": {"patch_size": [8, 8, 8]}}}, "2 numbers expected, for dims is 2"),
        ({"train": {"loss": "mse"}}, "train.loss is 'mse', for segmentation one of dice_ce, ce, topk_ce, dice"),
        ({"train": {"loss": "bce"}}, "train.loss is 'bce', for segmentation one of"),
        (
            {"train": {"loss": "ce"}, "regions": {"all": [1, 2]}},
            "for labels that may overlap (`regions`) one of dice_bce",
        ),
        (
            {"train": {"loss": "dice"}, "task": "regression"},
            "train.loss is 'dice', for regression one of mse, mae expected",
        ),
        (
            {"train": {"class_weights": [1, 0]}},
            "class_weights is [1, 0]: one above 0 expected, besides the background's",
        ),
        ({"train": {"class_weights": [1, 2]}, "task": "regression"}, "class_weights is [1, 2], yet mse takes none"),
        ({"ignore_label": 3, "regions": {"all": [1, 3]}}, "ignore_label is 3, yet regions.all has it"),
        (
            {"regions": {"core": [2], "whole": [1, 2]}},
            "regions.core is [2]: one value that no later region has expected",
        ),
        (
            {"regions": {"a": [1, 2], "b": [2, 3]}},
            "regions.b is [2, 3], regions.a is [1, 2]: they overlap, yet b is no part of a. Nest them or keep them apart.",
        ),
        ({"regions": {"mean": [1]}}, "regions is 'mean': does not match"),
        ({"ignore_label": 3, "task": "regression"}, "ignore_label is 3, yet a regression has no labels"),
        ({"labels": {"1": "a"}, "task": "regression"}, "labels is {'1': 'a'}, yet a regression has no labels"),
        ({"task": "regression", "train": {"class_weights": [1, 2]}}, "class_weights is [1, 2], yet mse takes none"),
        (
            {"train": {"artefacts": ["motion"], "augment": False}},
            "train.artefacts is ['motion'], yet train.augment is false. Remove one of them.",
        ),
        ({"predict": {"mirror": True}}, "predict.mirror is true, yet train.mirror names no axis. Name axes there"),
        ({"configurations": {"2d": {"network": "unett"}}}, "is not one of ['unet'"),
        (
            {"configurations": {"2d": {"encoder": "resnet18"}}},
            "configurations.2d.encoder is 'resnet18', yet only backbone_unet takes it and the network is unet. Remove it.",
        ),
        (
            {"configurations": {"2d": {"network": "fcn", "preset": "M"}}},
            "2d.preset is 'M', yet only residual_unet takes it",
        ),
        ({"configurations": {"2d": {"padded": False}}}, "2d.padded is False, yet only classic_unet takes it"),
    ],
)
def test_a_wrong_key_or_value_is_one_line_that_names_it(change, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        complete({**TWO_LINES, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "loss"),
    [({}, "dice_ce"), ({"regions": {"all": [1, 2]}}, "dice_bce"), ({"task": "regression"}, "mse")],
)
def test_without_a_name_the_loss_is_the_one_that_fits(change, loss):
    assert complete({**TWO_LINES, **change})["train"]["loss"] == loss


def test_missing_keys_are_named_once():
    with pytest.raises(ConfigError, match="config: name and cohort missing"):
        complete({})


def test_config_yaml_is_valid_and_shows_every_knob():
    complete(yaml.safe_load(CONFIG))
    assert [key for key in SCHEMA["properties"] if not re.search(rf"^#? ?{key}:", CONFIG, re.MULTILINE)] == []
    for section in ("train", "predict", "segment", "evaluate", "report"):
        for key in SCHEMA["properties"][section]["properties"]:
            assert re.search(rf"^#? +{key}:", CONFIG, re.MULTILINE), f"{section}.{key}"
    for key in SCHEMA["$defs"]["configuration"]["properties"]:
        assert re.search(rf"^#.*\b{key}:", CONFIG, re.MULTILINE), key


def test_the_defaults_that_config_yaml_shows_are_those_of_the_schema():
    shown = yaml.safe_load(
        "\n".join(line[2:] for line in CONFIG.splitlines() if re.match(r"# ( *)[a-z_]+:( |$)", line))
    )
    defaults = complete(TWO_LINES)
    for key, value in shown.items():
        if key in SCHEMA["properties"] and "default" in SCHEMA["properties"][key] and not isinstance(value, dict):
            assert value == SCHEMA["properties"][key]["default"], key
    for section in ("train", "predict", "segment", "evaluate", "report"):
        for key, value in shown[section].items():
            if "default" in SCHEMA["properties"][section]["properties"][key] or key in defaults[section]:
                assert value == defaults[section][key], f"{section}.{key}"


def test_numbers_inside_values_of_the_command_line_are_numbers():
    """`--config 'train={minutes: 2}' run_folds=[0]` reaches us with the inner values as text."""
    given = {
        "name": "007",
        "cohort": "demo",
        "run_folds": ["0"],
        "train": {"minutes": "2.5", "augment": "false", "class_weights": ["1", "2"], "compile": "true"},
        "report": {"title": "2024", "cases": "2"},
        "configurations": {"mine": {"dims": "2", "patch_size": ["32", "48"]}},
    }
    full = complete(given)
    assert (full["name"], full["report"]["title"]) == ("007", "2024"), "what is text stays text"
    assert full["run_folds"] == [0]
    assert (full["train"]["minutes"], full["train"]["augment"], full["train"]["class_weights"]) == (2.5, False, [1, 2])
    assert full["report"]["cases"] == 2
    assert full["train"]["compile"] is True
    assert (full["configurations"]["mine"]["dims"], full["configurations"]["mine"]["patch_size"]) == (2, [32, 48])


def test_text_that_is_no_number_is_still_one_line_that_names_it():
    with pytest.raises(ConfigError, match=r"train.minutes is 'soon'"):
        complete({"name": "a", "cohort": "demo", "train": {"minutes": "soon"}})
    with pytest.raises(ConfigError, match=r"train.minutes is '\{a'"):
        complete({"name": "a", "cohort": "demo", "train": {"minutes": "{a"}})
