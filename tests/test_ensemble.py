import numpy as np

from pipeline.ensemble import all_combinations, choose, explain, mean_scores
from pipeline.probabilities import load_probabilities, save_probabilities

OFFERED = all_combinations(["2d", "3d_fullres"])


def scores(flat, full, both):
    return {("2d",): flat, ("3d_fullres",): full, ("2d", "3d_fullres"): both}


def test_every_subset_is_offered_the_largest_first():
    assert OFFERED == [("2d", "3d_fullres"), ("2d",), ("3d_fullres",)]


def test_a_fold_is_segmented_by_what_was_best_on_the_others():
    found = [scores(0.9, 0.1, 0.5), scores(0.1, 0.9, 0.5)]
    chosen = choose(found, [0, 1], OFFERED, [0, 1])
    assert chosen == {0: ("3d_fullres",), 1: ("2d",)}


def test_changing_the_scores_of_a_fold_never_changes_its_own_choice():
    before = [scores(0.9, 0.1, 0.5), scores(0.1, 0.9, 0.5)]
    after = [scores(0.0, 0.0, 1.0), before[1]]
    assert choose(before, [0, 1], OFFERED, [0, 1])[0] == choose(after, [0, 1], OFFERED, [0, 1])[0]


def test_one_fold_alone_is_averaged_over_everything_and_says_why():
    assert choose([scores(0.9, 0.1, 0.5)], [0], OFFERED, [0]) == {0: ("2d", "3d_fullres")}
    assert "only one fold was run" in explain(1, 2)
    assert explain(2, 2, is_regression=True) == "lowest mean absolute error on the cases of the other folds"


def test_cases_without_any_label_leave_the_mean_and_nothing_gives_zero():
    assert mean_scores([scores(None, 0.4, 0.5), scores(0.8, 0.6, 0.5)], OFFERED)[("2d",)] == 0.8
    assert mean_scores([], OFFERED)[("2d",)] == 0


def test_probabilities_survive_the_disk_to_half_a_step(tmp_path):
    probabilities = np.random.default_rng(0).random((3, 9, 11, 13), np.float32)
    save_probabilities(tmp_path / "a.npz", probabilities)
    assert np.abs(load_probabilities(tmp_path / "a.npz") - probabilities).max() <= 0.5 / 255 + 1e-6
