"""A cohort as people keep it, to its cases: one module for each layout, and what they share.

Reads names and descriptions only: no scan is opened, and a file that is listed but missing is left to `check`.
"""
