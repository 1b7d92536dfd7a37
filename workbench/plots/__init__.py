"""Figures for records, curves, histories, trees and traces: each returns an object and never shows it.

House rules, kept here in one place: one colour per method name, compute on a log axis, 95 % bands, n and seeds in the
caption, lines labelled where they end, a title computed from the data, and a missing value drawn as a gap.
"""

# ruff: noqa: F401
from .curves import (
    accuracy_vs_flops,
    best_of_n,
    by_bin,
    coverage,
    learning_curve,
    levels,
    over_optimisation,
    proxy_vs_truth,
    reliability_plot,
    score_by_depth,
    surface,
    two_axes,
)
from .frame import COLOURS, FAINT, INK, colour, save, wrap
from .trees import SCALE, labelled_tree, show_source, show_steps
