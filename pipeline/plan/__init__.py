"""Fingerprint and settings to `<configuration>.json`: every number that the later stages need, each with its reason.

Decides spacing, patch, batch, topology and normalisation by nnU-Net's rules, then has the real machine try the network:
patch and batch are corrected until what a training step takes fits into memory, and steps are timed at several network
widths, so that `train` can take the widest network that its budget can teach anything. The JSON may be edited by hand and
is then kept. Imports no torch.

record.py    the plan as data, and how it is read
rules.py     cohort and settings to a plan
measure.py   what a training step of it takes on this machine
__main__.py  the stage
"""

from pipeline.plan.measure import measure_step, with_measured
from pipeline.plan.record import (
    DIGEST,
    RAS_AXES,
    Plan,
    Width,
    by,
    contradictions,
    digest,
    edited_note,
    is_edited,
    plan_from_json,
    read_plan,
)
from pipeline.plan.rules import plan_configuration

__all__ = [
    "DIGEST",
    "RAS_AXES",
    "Plan",
    "Width",
    "by",
    "contradictions",
    "digest",
    "edited_note",
    "is_edited",
    "measure_step",
    "plan_configuration",
    "plan_from_json",
    "read_plan",
    "with_measured",
]
