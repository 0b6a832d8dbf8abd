"""What a label map says of labels and regions: the same for a reference, a mask and a picture of both."""

from dataclasses import replace

import numpy as np

from pipeline.metrics import dsc
from pipeline.records import Cohort
from pipeline.targets import as_painted, per_target

LABELS = Cohort("odd", "MSD", {0: "background", 2: "necrosis", 4: "oedema", 7: "active"}, {0: "T1"}, ignore_label=9)
REGIONS = replace(LABELS, regions={"whole": [2, 4, 7], "core": [2, 7], "active": [7]})
REFERENCE = np.array([0, 2, 4, 7, 9, 7]).reshape(1, 2, 3)


def test_a_reference_of_regions_is_painted_as_the_prediction_of_it():
    assert as_painted(REFERENCE, REGIONS).ravel().tolist() == [0, 2, 4, 7, 0, 7]
    apart = replace(LABELS, regions={"both": [4, 2], "active": [7]})
    assert as_painted(REFERENCE, apart).ravel().tolist() == [0, 2, 2, 7, 0, 7], "4 of both is painted as 2"


def test_a_reference_of_labels_stays_as_it_is_but_for_ignored_voxels():
    assert as_painted(REFERENCE, LABELS).ravel().tolist() == [0, 2, 4, 7, 0, 7]
    assert as_painted(REFERENCE, replace(LABELS, ignore_label=None)).ravel().tolist()[4] == 9


def test_painting_a_reference_changes_no_measure_of_its_regions():
    prediction = np.array([2, 2, 4, 4, 7, 7]).reshape(1, 2, 3)
    found = per_target(dsc, REFERENCE, prediction, REGIONS, REGIONS.targets)
    assert found == [2 * 4 / (4 + 5), 2 * 2 / (3 + 3), 2 * 1 / (2 + 1)]
    painted = np.where(REFERENCE == 9, 9, as_painted(REFERENCE, REGIONS))
    assert per_target(dsc, painted, prediction, REGIONS, REGIONS.targets) == found


def test_ignored_voxels_count_for_no_label_and_the_maps_stay_as_they_were():
    prediction = np.full_like(REFERENCE, 7)
    before = REFERENCE.copy()
    assert per_target(dsc, REFERENCE, prediction, LABELS, LABELS.targets) == [0, 0, 2 * 2 / (2 + 5)]
    assert (before == REFERENCE).all() and (prediction == 7).all()
