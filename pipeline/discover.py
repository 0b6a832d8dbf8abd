"""A cohort folder or table, or the word `demo`, to `cases.tsv` and `cohort.json`: the files of each case.

Its fold too, if the cohort gives one; otherwise `check` deals the folds. Reads names only: no scan is opened, and a file
that is listed but missing is left to `check`.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from pipeline import errors, records
from pipeline.config import DEMO
from pipeline.errors import CohortError
from pipeline.layouts.found import Wanted
from pipeline.layouts.recognise import READERS, recognise
from pipeline.paths import Results
from pipeline.records import Cohort
from pipeline.splits import refuse_too_few

DEMO_CASES = 20


def main(results: str, cohort: str, settings: str) -> None:
    """`settings`: `{"folds": 5, "seed": 12345, "layout": "auto", "labels": {"1": "liver"}, "channels": {"0": "CT"},
    "ignore_label": 9, "regions": [["whole", [1, 2]], ["core", [2]]], "task": "segmentation"}`."""
    files = Results(results)
    wanted = json.loads(settings)
    place = Path(cohort)
    if cohort == DEMO:
        from pipeline import phantoms  # takes scipy along, which no other cohort needs

        place = files.demo_scans
        phantoms.write_cohort(
            place, num_cases=DEMO_CASES, seed=wanted["seed"], modality="CT", has_values=wanted["task"] == "regression"
        )
    layout, reason = recognise(place, wanted["layout"])
    keys = ("labels", "channels", "ignore_label", "task")
    found = READERS[layout](place, Wanted(**{key: wanted[key] for key in keys}, regions=dict(wanted["regions"])))
    refuse_unknown_values(found.cohort)
    cases = found.cases
    subjects = [case.subject for case in cases if case.split == "train"]
    refuse_too_few(subjects, wanted["folds"])
    records.write_cases(files.cases, cases)
    records.write_cohort(files.cohort, found.cohort)
    print(f"discover: {found.cohort.layout} layout in {place}, for {reason}")
    held_out = f"{len(cases) - len(subjects)} more in the test split, " if len(subjects) < len(cases) else ""
    print(f"discover: {len(subjects)} cases, {held_out}{len(set(subjects))} subjects, {wanted['folds']} folds")
    print(f"discover: labels {_listed(found.cohort.labels) or 'none'}; channels {_listed(found.cohort.channels)}")


def _listed(names: Mapping[int, str]) -> str:
    return ", ".join(f"{number} {name}" for number, name in names.items())


def refuse_unknown_values(cohort: Cohort) -> None:
    """
    Raises:
        CohortError: a region of a value that is no label.
    """
    for name, values in cohort.regions.items():
        if unknown := sorted(set(values) - set(cohort.foreground)):
            raise CohortError(
                f"regions.{name}: {unknown} found, labels of the cohort ({_listed(cohort.foreground)}) expected. "
                "Correct `regions` or declare the label under `labels`."
            )


if __name__ == "__main__":
    errors.run(main)
