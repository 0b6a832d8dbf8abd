"""What changed after the check: named by the stage that is about to read it, with what to do."""

from pathlib import Path

import numpy as np
import pytest

from pipeline import fingerprint, records
from pipeline.check.__main__ import main as check
from pipeline.errors import CohortError
from pipeline.manifest import on_unchanged, refuse_changed
from pipeline.paths import Results
from pipeline.records import Case
from tests.test_check import cohort, label, save, scan, segmentation  # noqa: F401

FILES = Results("odd")
AGAIN = "`snakemake --cores 8 --forcerun check`"


def test_a_scan_that_changed_after_the_check_is_named_before_it_is_read(cohort: list[Case]) -> None:  # noqa: F811
    check("odd")
    fingerprint.main("odd")
    save(cohort[2].channels[0], scan(99))
    with pytest.raises(CohortError, match=rf"^scans/image_2\.nii\.gz: changed since it was checked, sha256 .*{AGAIN}"):
        fingerprint.main("odd")
    check("odd")
    fingerprint.main("odd")


def test_a_label_map_that_changed_is_seen_where_only_labels_are_read(cohort: list[Case]) -> None:  # noqa: F811
    check("odd")
    case = cohort[0]
    assert case.label
    save(case.channels[0], scan(99))
    assert on_unchanged(lambda case: case.case, FILES.manifest, "label", case) == "case_0"
    label(case.label, np.flip(segmentation(), 2))
    with pytest.raises(CohortError, match=r"^scans/label_0"):
        on_unchanged(lambda case: case.case, FILES.manifest, "label", case)


def test_a_file_that_is_gone_or_was_never_checked_is_named(cohort: list[Case]) -> None:  # noqa: F811
    check("odd")
    cohort[0].channels[0].unlink()
    with pytest.raises(CohortError, match=rf"image_0\.nii\.gz: no such file found, .*{AGAIN}"):
        refuse_changed(cohort[0].channels[0], FILES.manifest)
    with pytest.raises(CohortError, match=rf"^other\.nii: not in results/odd/check/manifest\.tsv, .*{AGAIN}"):
        refuse_changed(Path("other.nii"), FILES.manifest)


def test_the_source_of_a_standard_copy_is_watched_too(cohort: list[Case]) -> None:  # noqa: F811
    array = scan().astype(np.float32)
    array[0, 0, 0] = np.nan
    save(cohort[1].channels[0], array)
    check("odd", '{"nonfinite": "fill"}')
    copy = records.read_cases(FILES.checked_cases)[1].channels[0]
    assert copy == FILES.standard("case_1_0000")
    refuse_changed(copy, FILES.manifest)
    save(cohort[1].channels[0], array + 1)
    with pytest.raises(CohortError, match=r"^scans/image_1\.nii\.gz: changed since"):
        refuse_changed(copy, FILES.manifest)
