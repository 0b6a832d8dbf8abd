from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline import records
from pipeline.forecast import UNKNOWN_MIB, segment_mb
from pipeline.paths import Results
from pipeline.plan import Width
from pipeline.records import Cohort, TrainingFacts
from pipeline.windows import Setting
from tests.test_preprocess import make_plan

FACTS = TrainingFacts(
    device="CPU",
    form="",
    width=4,
    patch_size=(16, 24, 16),
    batch_size=2,
    steps=1,
    elapsed_s=1,
    waited_s=0,
    reason="",
    alarms=(),
)


def save_scan(name, shape):
    Path("scans").mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(np.zeros(shape, np.int16), np.diag((0.7, 1.0, 2.5, 1.0))), f"scans/{name}.nii")


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = Results("tiny")
    records.write_cohort(files.cohort, Cohort("tiny", "MSD", {0: "background", 2: "liver"}, {0: "MRI"}))
    for name in ("one", "two"):
        records.write_json(files.plan(name), asdict(make_plan(configuration=name, widths=(Width(4, 0.1),))))
        records.write_json(files.inference(name), asdict(Setting(1, 0.5, mirror=False)))
        records.write_facts(files.training_facts(name, 0), FACTS)
    records.write_json(files.choice, {"for_new_scans": ["one"]})
    save_scan("small", (18, 22, 13))
    return files


def test_the_largest_scan_and_every_chosen_configuration_count(files):
    small = segment_mb(files, Path("scans"), 0, 8)
    save_scan("large", (300, 300, 100))
    large = segment_mb(files, Path("scans"), 0, 8)
    records.write_json(files.choice, {"for_new_scans": ["one", "two"]})
    assert 600 < small < large < segment_mb(files, Path("scans"), 0, 8) < 4000
    assert large - small > 300 * 300 * 100 * 4 / 2**20, "a scan in float32 at least"


def test_what_cannot_be_known_yet_is_a_fixed_amount(files):
    Path("scans/small.nii").write_bytes(b"no header")
    assert segment_mb(files, Path("scans"), 0, 8) == UNKNOWN_MIB
    assert segment_mb(files, Path("nowhere"), 0, 8) == UNKNOWN_MIB
    files.choice.unlink()
    assert segment_mb(files, Path("scans"), 0, 8) == UNKNOWN_MIB
