"""What is chosen, by whom, and when nothing is."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.choice import (
    CaseScores,
    Choice,
    Offer,
    accept,
    accepted_as_json,
    candidate_sizes,
    choose,
    decide,
    mean_score,
    mean_scores,
    operations_from_json,
    score_of,
)
from pipeline.postprocess import NOTHING, Operation

PARTS = [("2d", "3d_fullres"), ("2d",), ("3d_fullres",)]
FILL, SMALL, LARGE, LARGEST = (
    Operation(fill_holes=True),
    Operation(min_mm3=1),
    Operation(min_mm3=1000),
    Operation(keep_largest=True),
)
OPTIONS = (NOTHING, FILL, SMALL, LARGE, LARGEST)
OFFER = Offer(PARTS, OPTIONS, [1, "core"])
VOLUMES = np.array([2.0, 50.0, 90.0])
NONE = np.nan


def one_label(*cases):
    return np.array(cases, np.float32)


def accepted(*cases, volumes=VOLUMES):
    found = accept(one_label(*cases), volumes, OPTIONS)
    return found and found.operation


def test_an_operation_is_accepted_where_it_helps_and_the_best_of_those():
    assert accepted([0.5, 0.6, 0.5, 0.5, 0.7], [0.5, 0.6, 0.5, 0.5, 0.7]) == LARGEST
    assert accepted([0.5, 0.5, 0.5, 0.5, 0.5], [0.5, 0.4, 0.3, 0.5, 0.1]) is None


def test_a_mean_that_hardly_rises_is_not_enough():
    assert accepted([0.5, 0.5005, 0.5, 0.5, 0.5], [0.5, 0.5005, 0.5, 0.5, 0.5]) is None
    assert accepted([0.5, 0.5015, 0.5, 0.5, 0.5], [0.5, 0.5015, 0.5, 0.5, 0.5]) == FILL


def test_one_lucky_case_is_not_enough_and_neither_are_two_against_two():
    assert accepted([0.1, 0.9, 0.1, 0.1, 0.1], [0.5, 0.5, 0.5, 0.5, 0.5]) is None
    better, worse = [0.1, 0.9, 0.1, 0.1, 0.1], [0.5, 0.49, 0.5, 0.5, 0.5]
    assert accepted(better, better, worse) == FILL
    assert accepted(better, better, worse, worse) is None


def test_of_equally_good_operations_the_gentler_is_taken():
    assert accepted([0.5, 0.6, 0.6, 0.6, 0.6], [0.5, 0.6, 0.6, 0.6, 0.6]) == FILL


def test_no_component_is_asked_to_be_larger_than_those_of_the_references():
    better = [0.5, 0.5, 0.6, 0.9, 0.5]
    assert accepted(better, better) == SMALL
    assert accepted(better, better, volumes=np.array([2000.0])) == LARGE
    assert accepted(better, better, volumes=np.empty(0)) is None


def test_sizes_follow_the_smallest_components_of_the_references():
    assert candidate_sizes(np.arange(2.0, 102.0)) == {1, 3, 10}, "2, 6 and 26 mm3"
    assert candidate_sizes(np.array([0.0001])) == set()
    assert candidate_sizes(np.empty(0)) == set()


def test_nothing_where_nothing_should_be_is_a_success_and_a_case_without_the_label_has_no_say():
    assert accepted([0, 0, NONE, 0, 0], [0, 0, NONE, 0, 0], [NONE] * 5) == SMALL
    found = accept(one_label([0, 0, NONE, 0, 0], [0, 0, NONE, 0, 0], [NONE] * 5), VOLUMES, OPTIONS)
    assert found is not None and (found.gain, found.num_better, found.num_worse) == (1, 2, 0)
    assert accepted([NONE] * 5, [NONE] * 5) is None


def test_the_mean_is_that_of_the_labels_means_and_of_nothing_0():
    assert mean_score(one_label([0.2, NONE], [0.4, 0.9])) == pytest.approx(0.6)
    assert mean_score(one_label([0.2, NONE], [0.4, NONE])) == pytest.approx(0.3)
    assert mean_score(one_label([NONE, NONE])) == 0


def random_case(random, fold):
    """Every option the better or worse for chance alone."""
    values = 0.5 + 0.1 * random.standard_normal((3, 1, 1)) + 0.1 * random.standard_normal((3, 2, 5))
    return CaseScores(fold, values.astype(np.float32), (VOLUMES, VOLUMES))


def test_the_combination_comes_first_and_the_operations_are_chosen_on_it():
    values = np.full((3, 2, 5), 0.5, np.float32)
    values[2] = 0.6  # 3d_fullres
    values[2, 1, 4] = 0.7  # its second label, when the largest component is kept
    values[1, 0, 1] = 0.9  # 2d would gain more
    found = choose([CaseScores(0, values, (VOLUMES, VOLUMES))] * 2, OFFER)
    assert (found.combination, found.operations) == (("3d_fullres",), (NOTHING, LARGEST))


@given(st.integers(0, 2**32 - 1))
def test_a_case_alone_in_its_fold_never_has_a_say_in_what_is_done_to_it(seed):
    random = np.random.default_rng(seed)
    scores = [random_case(random, fold) for fold in range(4)]
    changed = [random_case(random, 0), *scores[1:]]
    assert decide(scores, range(4), OFFER)[0][0] == decide(changed, range(4), OFFER)[0][0]


def test_the_same_case_does_have_a_say_in_what_is_done_to_others_and_to_new_scans():
    scores = [random_case(np.random.default_rng(1), fold) for fold in range(3)]
    extreme = np.zeros((3, 2, 5), np.float32)
    extreme[1] = 1  # 2d alone
    changed = [CaseScores(0, extreme, (VOLUMES, VOLUMES)), *scores[1:]]
    before, after = decide(scores, range(3), OFFER), decide(changed, range(3), OFFER)
    assert (after[0][1].combination, after[0][2].combination, after[1].combination) == (("2d",),) * 3
    assert before[1].combination != ("2d",)


def test_one_fold_alone_is_averaged_and_left_as_it_is_while_new_scans_may_be_cleaned():
    values = np.full((3, 2, 5), 0.5, np.float32)
    values[1, :, 4] = 0.9
    values[1, :, 0] = 0.6
    per_fold, new = decide([CaseScores(0, values, (VOLUMES, VOLUMES))] * 3, [0], OFFER)
    assert per_fold == {0: Choice(PARTS[0], (None, None))}
    assert (new.combination, new.operations) == (("2d",), (LARGEST, LARGEST))
    assert score_of([CaseScores(0, values, (VOLUMES, VOLUMES))], per_fold, OFFER) == 0.5


def test_without_scores_everything_is_averaged_and_nothing_cleaned():
    assert choose([], OFFER) == Choice(PARTS[0], (None, None))
    assert mean_scores([], OFFER) == {}


def test_where_chance_alone_decides_the_choice_on_the_same_cases_looks_better_than_it_is():
    gaps = []
    for seed in range(60):
        random = np.random.default_rng(seed)
        scores = [random_case(random, fold) for fold in range(5) for _ in range(2)]
        chosen, naive = decide(scores, range(5), OFFER)
        gaps.append(score_of(scores, dict.fromkeys(chosen, naive), OFFER) - score_of(scores, chosen, OFFER))
    assert np.mean(gaps) > 3 * np.std(gaps) / np.sqrt(len(gaps)) > 0


def test_mean_scores_are_those_of_the_combinations_as_they_are():
    scores = [random_case(np.random.default_rng(seed), 0) for seed in range(3)]
    found = mean_scores(scores, OFFER)
    assert list(found) == PARTS
    assert found[("2d",)] == pytest.approx(np.mean([one.values[1, :, 0] for one in scores]))


def test_what_was_accepted_survives_the_way_through_json():
    values = np.full((3, 2, 5), 0.5, np.float32)
    values[:, 1, 4] = 0.7
    chosen = choose([CaseScores(0, values, (VOLUMES, VOLUMES))] * 2, OFFER)
    written = json.loads(json.dumps(accepted_as_json(chosen, OFFER.labels)))
    assert list(written) == ["core"]
    assert (written["core"]["better"], written["core"]["worse"]) == (2, 0)
    assert operations_from_json(written, OFFER.labels) == chosen.by_label(OFFER.labels) == {"core": LARGEST}
