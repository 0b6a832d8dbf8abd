"""The results of a run to one self-contained page, `report.html`: what was trained on what, how good it is, and why.

Chooses which cases to show and puts numbers into tables; measures nothing. Imports no torch.

cohort.py      what the check and the fingerprint say of the cases
scores.py      the tables of metrics and their means
stages.py      what plan, train, inference and ensemble wrote down, in rows and words
pictures.py    what is drawn, as part of the page; drawing itself is up to `pipeline.figures`
plots.py       the tables of a run as curves and points
viewer.py      scans and masks for the viewer in the page; niivue/ is the viewer, with its licences
provenance.py  what made the page, and where
templates/     the words and looks of the page, one file per section
__main__.py    the stage
"""
