# %% [markdown]
# # What is a decade of compute worth?
#
# A model can be made better before it meets a question (training) or while it works on one (sampling, judging). OpenAI's
# o1 report (September 2024) drew both as nearly straight lines over the logarithm of compute, on axes without numbers.
# You draw the same two pictures with numbers, from records alone: no model is loaded here.
#
# - **You will know** the slope of accuracy per decade of compute, what coverage promises and selection keeps, which
#   method suits which difficulty, and what reinforcement learning does to the curve at test time.
# - **Time and memory.** `nano`: 1 min and 1 GB when the earlier stages are on disk. What is missing is built here, with
#   a progress bar.
# - **Modules.** `scaling`, `plots`, `claims`, and the records of notebooks 02, 05 and 07.

# %% tags=["setup"]
from collections import Counter, defaultdict
from dataclasses import replace
from math import comb

import plotly.graph_objects as go
from IPython.display import Markdown
from plotly.subplots import make_subplots

from workbench import claims, plots, scaling, select
from workbench.pipeline import Series, read_records
from workbench.types import Cost, Record, Step, Trace

# %% tags=["parameters"]
profile = "nano"
runs = "runs"
seed = 0

# %% [markdown]
# ## A slope you can check by hand
#
# A decade is a factor of ten. If accuracy is 0.3 at 1 million FLOPs, 0.4 at 10 and 0.5 at 100, a decade is worth 0.1.
# You make such records and ask the package.


# %%
def pretend(n, right):
    """Ten problems, of which `right` are solved, at n million FLOPs each."""
    knobs, cost = {"method": "vote", "n": n}, Cost(policy_flops=1e6 * n)
    return [Record("toy", f"p/{i}", 0, "5", i < right, cost, knobs=knobs) for i in range(10)]


# %%
scaling.log_slope(pretend(1, 3) + pretend(10, 4) + pretend(100, 5), "vote").value

# %% [markdown]
# ## The test-time axis
#
# You open the records that guided search left: every method, every n, the same test problems.

# %%
series = Series(profile, runs, seed)
search = series.search()
records, samples = read_records(search), read_records(search, "samples")
len(records), len(samples), len({r.problem for r in records})

# %% [markdown]
# Each line is a method; each point a budget. The judge's reading is on the bill.

# %%
points = scaling.curve(records)
shown = [p for p in points if p.method in ("greedy", "majority", "best_of_n", "weighted_vote", "beam")]
single = scaling.accuracy([r for r in records if (r.knobs["method"], r.knobs["n"]) == ("majority", 1)])
plots.accuracy_vs_flops(shown, baseline=single)

# %% [markdown]
# A straight line through a method's budgets gives its slope: accuracy gained per tenfold compute, problems resampled.

# %%
slopes = {method: scaling.log_slope(records, method) for method in ("majority", "best_of_n", "weighted_vote")}
for _method, _slope in slopes.items():
    print(f"{_method:<14} per decade of FLOPs: {_slope}")

# %% [markdown]
# A line is a summary, not a law: accuracy ends at 1, and often bends before. You look at each step of the curve: what
# does the next doubling of n add?

# %%
for _method in slopes:
    _line = [p.accuracy.value for p in points if p.method == _method]
    print(f"{_method:<14}", " ".join(f"{b - a:+.3f}" for a, b in zip(_line, _line[1:], strict=False)))

# %% [markdown]
# ## Coverage, and what selection keeps of it
#
# Pass@k is the chance that *one* of k chains is right: what a perfect judge would get. You estimate it without bias
# from all chains of a problem (exercise 1).

# %%
most = min(Counter(r.problem for r in samples).values())
ks = [2**i for i in range(most.bit_length()) if 2**i <= most]
covered = scaling.coverage(samples, ks)
[(k, round(e.value, 3)) for k, e in covered]

# %% [markdown]
# Large Language Monkeys (arXiv 2407.21787) found c = exp(a·k^b) with a and b below zero. You fit it, where the points
# allow (a coverage of 0 or 1 is outside the law).


# %%
def fitted(line):
    """A power law through the points strictly between 0 and 1, or None."""
    inside = [(k, e.value) for k, e in line if 0 < e.value < 1]
    rising = len(inside) > 1 and inside[-1][1] > inside[0][1]
    return scaling.power_law(*zip(*inside, strict=True)) if rising else None


# %%
law = fitted(covered)
law

# %% [markdown]
# Guessing is the floor: answers lie between 0 and 999, so k blind guesses cover at most k in a thousand.

# %%
guess = max(ks) / 1000
plots.coverage({"sampling": covered}, baseline=guess, laws={"sampling": law} if law else None)

# %% [markdown]
# Now selection beside coverage, at the same n. The gap is what a better judge could still win.


# %%
def at(method, n):
    return [r for r in records if (r.knobs["method"], r.knobs["n"]) == (method, n)]


# %%
covers = {k: {r.problem: scaling.pass_at_k(1, int(r.correct), 1) for r in at("best_of_n (oracle)", k)} for k in ks}
ceiling = dict(covered)
for _k in [k for k in ks if k in series.profile.search_n]:
    _kept = {m: scaling.accuracy(at(m, _k)).value for m in ("majority", "weighted_vote")}
    print(f"n={_k:<3} coverage {ceiling[_k].value:.3f}", *(f"  {m} {v:.3f}" for m, v in _kept.items()))

# %% [markdown]
# ## Easy questions, hard questions
#
# Snell et al. (arXiv 2408.03314) cut the problems into five bins by the policy's *own* pass@1. If you bin by the same
# chains that you then report, the bins follow their luck: a problem looks easy because it was lucky, and then shines.
# So the second half of the chains bins, and only methods that use the first half are reported.

# %%
half = most // 2
binning = [r for r in samples if r.seed >= half]
own = scaling.by_problem(binning)
bins = scaling.quantile_bins(own, k=5)
limit = [n for n in series.profile.search_n if n <= half]
half, limit

# %% [markdown]
# How much does honesty matter? Bin by the first half and report the first half: the easy bin shines, the hard bin looks
# hopeless.

# %%
first = [r for r in samples if r.seed < half]
lucky = scaling.quantile_bins(scaling.by_problem(first), k=5)
for _b in (1, 5):
    _honest, _vain = (
        scaling.accuracy([r for r in first if each[r.problem] == _b]).value for each in (bins, lucky)
    )
    print(f"bin {_b}: pass@1 {_honest:.3f} binned by other chains, {_vain:.3f} binned by the same")

# %% [markdown]
# The budget is one number for all: what the weighted vote costs at 16 (or at the largest n allowed here). Every setting
# that costs no more may compete.

# %%
fixed = 16 if 16 in limit else max(limit)
price = {(p.method, p.n): p.x for p in points}
budget = price["weighted_vote", fixed]
rivals = [
    (p.method, p.n)
    for p in points
    if p.x <= budget and (p.n in limit or p.method == "greedy") and p.method in ("greedy", "majority", "best_of_n", "weighted_vote", "beam")
]
rivals

# %% [markdown]
# A row is a setting, a column a bin (1 is the easiest).

# %%
table = {
    setting: [scaling.accuracy([r for r in at(*setting) if bins[r.problem] == b]).value for b in range(1, 6)]
    for setting in rivals
}
Markdown(
    "| method | n | bin 1 | bin 2 | bin 3 | bin 4 | bin 5 |\n|---|---|---|---|---|---|---|\n"
    + "\n".join(f"| {m} | {n} | " + " | ".join(f"{v:.2f}" for v in row) + " |" for (m, n), row in table.items())
)

# %% [markdown]
# It is tempting to take the best of each column. That is choosing and reporting on the same problems. Two folds mend it:
# choose on one half of a bin, report on the other, swap, average.


# %%
def two_fold(rows, folds):
    """{problem: accuracy of the setting that is best on the *other* fold}; rows: {setting: {problem: 0 or 1}}."""
    out = {}
    for here, there in (folds, folds[::-1]):
        choice = max(rows, key=lambda setting: sum(rows[setting][p] for p in there))
        out |= {p: rows[choice][p] for p in here}
    return out


# %%
marks = {setting: scaling.by_problem(at(*setting)) for setting in rivals}
optimal, greedy_choice = {}, {}
for _b in range(1, 6):
    _inside = sorted(p for p in bins if bins[p] == _b)
    optimal |= two_fold(marks, (_inside[::2], _inside[1::2]))
    greedy_choice |= two_fold(marks, (_inside, _inside))
best_fixed = scaling.paired_bootstrap(optimal, marks["weighted_vote", fixed])
print(f"best method per bin, chosen on other problems: {scaling.bootstrap(optimal)}")
print(f"chosen on the same problems (do not do this): {scaling.bootstrap(greedy_choice)}")
print(f"against the weighted vote everywhere: {best_fixed}")

# %% [markdown]
# ## The training axis
#
# Teaching logged its accuracy as it went: greedy, on validation problems. FLOPs grow with steps (batches differ a little
# in length, so this is exact only at the end).

# %%
taught = series.teach()
total = taught.summary["cost"]["training_flops"]
lesson = [{**row, "FLOPs": total * row["step"] / taught.summary["steps"]} for row in taught.read("history")]
plots.learning_curve(lesson, x="FLOPs", y="accuracy").update_xaxes(type="log", title="training FLOPs (log scale)")

# %% [markdown]
# The curve is no line: the skill arrives all at once. What was the last decade worth?

# %%
start = next(row for row in lesson if row["FLOPs"] >= lesson[-1]["FLOPs"] / 10)
print(f"from {start['FLOPs']:.2g} to {lesson[-1]['FLOPs']:.2g} FLOPs: {start['accuracy']:.3f} to {lesson[-1]['accuracy']:.3f}")

# %% [markdown]
# ## Before and after reinforcement learning, at test time
#
# Reinforcement learning is training too. Each policy left chains for every test problem, four of them after reward. A
# vote over the first n of them is a test-time curve.


# %%
def votes(rows, n, name):
    """Majority over the first n chains of each problem, as records; costs add up."""
    groups, out = defaultdict(list), []
    for row in sorted(rows, key=lambda r: r.seed):
        groups[row.problem].append(row)
    for problem, chains in groups.items():
        some = chains[:n]
        answer = select.majority([Trace((Step(r.answer or "", True),), "answer" if r.answer else "cut") for r in some])
        right = answer is not None and any(r.correct for r in some if r.answer == answer)
        cost = sum(r.cost for r in some)
        out.append(Record("vote", problem, 0, answer, right, cost, some[0].level, {"method": name, "n": n}))
    return out


# %%
sides = {"before RL": samples, "after RL": read_records(series.reinforce("outcome"))}
voted = [r for name, rows in sides.items() for n in (1, 2, 4) for r in votes(rows, n, name)]
plots.accuracy_vs_flops(scaling.curve(voted))

# %%
spent = series.reinforce("outcome").summary["cost"]
rl_flops = Cost(**spent).flops
after = scaling.accuracy([r for r in voted if r.knobs == {"method": "after RL", "n": 1}])
reached = next((p for p in points if p.method == "majority" and p.accuracy.value >= after.value), None)
print(f"one chain after RL: {after}")
print(f"reached before RL by a vote of {reached.n}" if reached else "no vote of the untrained policy reaches it")

# %% [markdown]
# If a vote does reach it, training pays for itself after some number of questions: its FLOPs over the FLOPs that each
# answer saves.

# %%
one = next(p.x for p in scaling.curve(voted) if (p.method, p.n) == ("after RL", 1))
saves = reached.x - one if reached else 0
print(f"RL cost {rl_flops:.3g} FLOPs;", f"paid back after {rl_flops / saves:,.0f} questions" if saves > 0 else "no saving to set against it")

# %% [markdown]
# ## Both axes side by side
#
# The o1 picture, with numbers: training on the left, test time on the right, accuracy up.

# %%
_both = make_subplots(1, 2, shared_yaxes=True, subplot_titles=("training FLOPs, all questions", "test-time FLOPs, one question"))
_both.add_trace(go.Scatter(x=[r["FLOPs"] for r in lesson], y=[r["accuracy"] for r in lesson], line_color=plots.colour("greedy"), name="teaching, greedy"), 1, 1)
for _method in ("majority", "weighted_vote"):
    _line = [p for p in points if p.method == _method]
    _both.add_trace(go.Scatter(x=[p.x for p in _line], y=[p.accuracy.value for p in _line], line_color=plots.colour(_method), name=_method), 1, 2)
_title = f"A decade at test time: {slopes['weighted_vote'].value:+.2f} with the judge, {slopes['majority'].value:+.2f} with the vote"
_both.update_xaxes(type="log", exponentformat="power", dtick=1)
_both.update_yaxes(tickformat=".0%").update_layout(template="workbench", title=_title, showlegend=True, legend_orientation="h", margin_t=90)

# %% [markdown]
# ## What you saw


# %%
def told(estimate, goal, yes, no):
    return {"holds": yes, "fails": no, "undecided": "cannot be told from these problems"}[claims.decide(estimate, goal)]


# %%
_top = max(ks)
_kept = scaling.accuracy(at("weighted_vote", max(series.profile.search_n)))
_fit = f"The power law misses by at most {law.max_error:.3f}." if law else "No power law fits here."
Markdown(
    f"- A decade of test-time compute is worth {slopes['weighted_vote'].value:+.3f} accuracy with the judge "
    f"({told(slopes['weighted_vote'], '> 0', 'above zero', 'not above zero')}) and {slopes['majority'].value:+.3f} with "
    "the vote. The o1 report's axes carry no numbers, so no slope can be set against these.\n"
    f"- Coverage reaches {ceiling[_top].value:.3f} at {_top} chains. {_fit} The judge keeps {_kept.value:.3f}.\n"
    f"- The best method per bin changes accuracy by {best_fixed.value:+.3f} against the weighted vote everywhere: "
    f"{told(best_fixed, '> 0', 'it helps', 'it does not help')}. Snell et al. report 2–4 times less compute.\n"
    f"- One chain after reinforcement learning is worth "
    + (f"a vote of {reached.n} before it." if reached else "more than any vote before it.")
)

# %%
found = [
    claims.Claim(
        "scaling.test_time_slope",
        "OpenAI o1 report 2024; Snell et al. 2024 (2408.03314)",
        "the judge-weighted vote gains accuracy with every decade of test-time compute",
        "> 0",
        slopes["weighted_vote"],
    )
]
claims.record(runs, profile, "08_test_time_scaling", found)
print(claims.table(found))
print(f"beside it, majority vote: {slopes['majority']} per decade")
