"""Every file of the cohort, decoded to its end, to `problems.tsv` and, if nothing is refused, `manifest.tsv`.

A rule is a function that returns a `Problem` or None; it stands in the tuple that asks it, cheap before dear.
A file's first refusal ends its list and other files go on, so that one run shows what is wrong everywhere.
Repairs no file.

problem.py   what a rule finds
header.py    rules on a header, and the corner rule for two grids
voxels.py    the bytes on disk, one pass over the voxels, and the rules on what it saw
case.py      all files of a case
__main__.py  the stage, and rules that need all cases
"""
