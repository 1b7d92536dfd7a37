"""Records in, numbers with intervals out: accuracy, compute curves, coverage, verifier quality and what search buys.

One habit throughout: the problem is the unit of evidence. Seeds are averaged inside a problem, problems are resampled,
and two methods are compared on the same problems; only `over_trainings` takes a training for it. A missing value is
refused or counted aloud, never read as 0.
No torch.
"""

# ruff: noqa: F401
from . import recorded
from .curves import Point, accuracy, by_level, by_problem, curve, difference, log_slope, named, paired_at_equal_flops
from .laws import (
    CoverageLaw,
    Exchange,
    PowerLaw,
    coverage,
    coverage_law,
    exchange_rate,
    pass_at_k,
    power_law,
    submissions,
)
from .optimal import (
    Matched,
    Optimal,
    compute_optimal,
    efficiency,
    flops_matched,
    mean_scores,
    optimal_curve,
    quantile_bins,
    spent,
)
from .stats import (
    Estimate,
    McNemar,
    Ratio,
    between,
    bootstrap,
    detectable_gap,
    discordance,
    holm,
    mcnemar,
    over_trainings,
    paired_bootstrap,
    power,
    problems_needed,
    wilson,
)
from .steps import (
    Bin,
    best_threshold,
    calibration_error,
    ece,
    first_error_f1,
    first_error_hits,
    first_error_rates,
    hit_rates,
    reliability,
    step_auc,
)
from .thinking import Forcing, Trend, adaptive_thinking, budget_forcing
