import numpy as np
import pytest
import torch

from pipeline.errors import TrainingError
from pipeline.nn.alarms import EMPTY_VALIDATIONS, LONGEST_STREAK, Alarms, Validation

CPU = torch.device("cpu")
GOOD, BAD = torch.tensor(1.0), torch.tensor(0.0)


def seen(predicted, wanted=(5, 5)):
    return Validation(0.5, np.array([0, 0]), np.array(predicted), np.array(wanted))


def test_three_validations_of_background_only_are_said_once(capsys):
    alarms = Alarms((1, 2), CPU)
    for step in range(2 * EMPTY_VALIDATIONS):
        alarms.check_validation(step, seen([0, 0]))
    assert capsys.readouterr().out == "alarm: step 2: 3 validations in a row found background only\n"


def test_foreground_in_between_starts_the_count_anew(capsys):
    alarms = Alarms((1, 2), CPU)
    for predicted in ([0, 0], [0, 0], [1, 0], [0, 0]):
        alarms.check_validation(1, seen(predicted))
    assert not capsys.readouterr().out


def test_a_label_that_is_never_predicted_is_named_by_its_value_at_the_end():
    alarms = Alarms((4, 7), CPU)
    alarms.check_validation(1, seen([10, 0]))
    alarms.check_end()
    assert alarms.messages == ["label 7 was never predicted, though held-out scans have it"]


def test_held_out_scans_without_foreground_raise_no_alarm():
    alarms = Alarms((1, 2), CPU)
    for step in range(5):
        alarms.check_validation(step, seen([0, 0], wanted=(0, 0)))
    alarms.check_end()
    assert alarms.messages == []


def test_a_streak_of_bad_gradients_stops_and_single_ones_do_not(capsys):
    alarms = Alarms((1,), CPU)
    for _ in range(LONGEST_STREAK):
        alarms.note_gradient(BAD)
        alarms.note_gradient(GOOD)
    alarms.check_gradients(40, 0.3, [])
    assert f"alarm: {LONGEST_STREAK} steps skipped so far" in capsys.readouterr().out
    for _ in range(LONGEST_STREAK):
        alarms.note_gradient(BAD)
    with pytest.raises(TrainingError, match="20 steps in a row without a finite gradient; all scans are finite"):
        alarms.check_gradients(60, 0.3, [])


def test_alarms_survive_a_restart():
    alarms, fresh = Alarms((1, 2), CPU), Alarms((1, 2), CPU)
    alarms.note_gradient(BAD)
    alarms.check_validation(1, seen([10, 0]))
    alarms.check_end()
    fresh.load_state_dict(alarms.state_dict())
    assert fresh.skipped == 1 and fresh.messages == alarms.messages
    assert fresh.is_predicted.tolist() == [True, False]


def test_a_regression_without_labels_survives_a_restart_too():
    alarms, fresh = Alarms((), CPU), Alarms((), CPU)
    fresh.load_state_dict(alarms.state_dict())
    fresh.check_end()
    assert fresh.messages == []


def test_dsc_of_a_validation_counts_labels_that_are_predicted_or_wanted():
    validation = Validation(0.1, np.array([8, 0, 0]), np.array([10, 5, 0]), np.array([10, 0, 0]))
    assert validation.dsc == pytest.approx((0.8 + 0) / 2)
    assert Validation(None, *np.zeros((3, 2), int)).dsc is None
