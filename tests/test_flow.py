"""What the Snakefile asks of a configuration."""

from pathlib import Path

from pipeline.flow import Run


def test_the_cohorts_description_is_watched_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run({"name": "a", "cohort": "scans"})
    assert run.cohort_description == [], "discover says that it is missing, in one line"
    for folder in ("scans", "demo"):
        Path(folder).mkdir()
        Path(folder, "dataset.json").touch()
    assert run.cohort_description == [Path("scans/dataset.json")]
    assert Run({"name": "a", "cohort": "demo"}).cohort_description == [], "the phantoms, whatever is called demo here"
