# %% [markdown]
# # What is a decade of compute worth?
#
# A model can be made better before it meets a question (training) or while it works on one (sampling, judging).
# OpenAI's o1 report (September 2024) drew both as nearly straight lines over the logarithm of compute, on axes without
# numbers. You draw the same two pictures with numbers, from records: nothing is trained here.
#
# - **You will know** the slope of accuracy per decade of compute; which differences between methods are real; what
#   coverage promises and selection keeps; how much a strategy that fits the difficulty saves; when a small model with
#   search beats one 14 times larger; and at what rate training and search exchange.
# - **Time and memory.** `nano`: 2 min and 1 GB when the earlier stages are on disk. What is missing is built here, with
#   a progress bar.
# - **Modules.** `scaling`, `plots`, `claims`, and the records of notebooks 02, 05, 06 and 07.

# %% tags=["setup"]
from collections import Counter, defaultdict
from dataclasses import replace
from math import comb, log, log10

from IPython.display import Markdown

from workbench import claims, evaluate, plots, scaling, select, tasks
from workbench.pipeline import Series, ledger, missing, read_records
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
# A straight line through a method's budgets gives its slope: accuracy gained per tenfold compute, problems resampled.
# The judge's reading is on the bill. (Some questions these records cannot answer: a law cannot be fitted to a policy
# that solves nothing. `claims.measured` then prints the reason and gives None.)

# %%
points = scaling.curve(records)
slopes = {method: scaling.log_slope(records, method) for method in ("majority", "best_of_n", "weighted_vote")}
for _method, _slope in slopes.items():
    print(f"{_method:<14} per decade of FLOPs: {_slope}")

# %% [markdown]
# This is the figure that answers the title. Each line is a method, each point a budget, the dashed line one sample.


# %%
def at(method, n):
    return [r for r in records if (r.knobs["method"], r.knobs["n"]) == (method, n)]


# %%
shown = [p for p in points if p.method in ("greedy", "majority", "best_of_n", "weighted_vote", "beam")]
_worth = {m: f"{100 * slopes[m].value:+.0f} points" for m in ("majority", "weighted_vote")}
title = f"A decade of test-time compute: {_worth['majority']} by majority, {_worth['weighted_vote']} with a judge"
plots.accuracy_vs_flops(shown, title=title, baseline=scaling.accuracy(at("majority", 1)))

# %% [markdown]
# The searches that grow trees or work on one chain again, beside the vote. The judge is the same for all.

# %%
trees = ("majority", "adaptive", "beam", "lookahead", "dvts", "mcts", "particle", "revisions", "hybrid")
_n = max(series.profile.beam_n)
_at = {p.method: p.accuracy.value for p in points if p.n == _n}
_title = ", ".join(f"{m} {_at[m]:.0%}" for m in ("majority", "beam", "mcts", "revisions") if m in _at)
plots.accuracy_vs_flops([p for p in points if p.method in trees], title=f"At n = {_n}: {_title}")

# %% [markdown]
# Best of n, by who judges: the likelihood judge, the two heads, and the oracle, which never errs about a step. A chain
# that errs on its way to the right answer is no good to it, so it is a yardstick for judges of steps and no ceiling.

# %%
_n = max(series.profile.beam_n)
by_judge = {p.method: p for p in points if p.method.startswith("best_of_n") and p.n <= _n}
_title = ", ".join(
    f"{m.removeprefix('best_of_n').strip(' ()') or 'likelihood'} {p.accuracy.value:.0%}" for m, p in by_judge.items()
)
plots.accuracy_vs_flops([p for p in points if p.method in by_judge], title=f"Best of {_n} by who judges: {_title}")

# %% [markdown]
# Look at greedy before you believe a slope: it is measured from *one sample*. How many chains does each method need
# before it is better than one greedy chain, beyond its interval?


# %%
def beyond(method, rows):
    """The cheapest budget of a method that is clearly better than these records, problem by problem; or None."""
    ours = (p for p in points if p.method == method)
    return next((p for p in ours if scaling.difference(at(method, p.n), rows).low > 0), None)


# %%
bar = scaling.accuracy(at("greedy", 1)).value
for _method in slopes:
    _point = beyond(_method, at("greedy", 1))
    _say = f"n={_point.n}, {_point.x / scaling.curve(at('greedy', 1))[0].x:.0f} times its FLOPs" if _point else "never"
    print(f"{_method:<14} is clearly above greedy ({bar:.3f}): {_say}")

# %% [markdown]
# A line is a summary, not a law: accuracy ends at 1, and often bends before. You look at each step of the curve: what
# does the next doubling of n add?

# %%
lines = {m: [p.accuracy.value for p in points if p.method == m] for m in slopes}
steps = {m: [b - a for a, b in zip(line, line[1:], strict=False)] for m, line in lines.items()}
last = {m: doublings[-1] for m, doublings in steps.items()}
for _method, _doublings in steps.items():
    print(f"{_method:<14}", " ".join(f"{step:+.3f}" for step in _doublings))

# %% [markdown]
# ## Which differences are real?
#
# Many methods on the same problems: some will beat the vote by luck. McNemar's exact test looks only at the problems
# that one of two methods solves and the other does not. Holm's correction then pays for having looked so often.

# %%
n = 16 if 16 in series.profile.search_n else max(series.profile.search_n)
vote = scaling.by_problem(at("majority", n))
same_n = sorted({r.knobs["method"] for r in records if r.knobs["n"] == n and "oracle" not in r.knobs["method"]})
tests = {m: scaling.mcnemar(scaling.by_problem(at(m, n)), vote) for m in same_n if m != "majority"}
adjusted = scaling.holm({m: test.p for m, test in tests.items()})

# %%
rows = [(m, t.only_a, t.only_b, f"{t.p:.4f}", f"{adjusted[m]:.4f}") for m, t in tests.items()]
_lines = ["| " + " | ".join(map(str, row)) + " |" for row in sorted(rows, key=lambda row: float(row[3]))]
Markdown(f"| method, n = {n} | only it | only the vote | p | p, Holm |\n|---|---|---|---|---|\n" + "\n".join(_lines))

# %% [markdown]
# And how many problems would you need to *see* two points? It depends on how often the two sides disagree.

# %%
disagree = scaling.discordance(scaling.by_problem(at("weighted_vote", n)), vote)
print(f"{disagree:.1%} of the problems tell the two apart")
print("problems that two points need:", claims.measured(scaling.problems_needed, 0.02, disagree))
print(f"what these {len(vote)} see four times in five:", claims.measured(scaling.detectable_gap, len(vote), disagree))

# %% [markdown]
# ## Coverage, and what selection keeps of it
#
# Pass@k is the chance that *one* of k chains is right: what a perfect judge would get. You estimate it without bias
# from all chains of a problem (exercise 2). Large Language Monkeys (arXiv 2407.21787) found c = exp(a·k^b) with a and b
# below zero; you fit it, and resample problems to see how sure a and b are.

# %%
most = min(Counter(r.problem for r in samples).values())
ks = [2**i for i in range(most.bit_length()) if 2**i <= most]
covered = {"sampling": scaling.coverage(samples, ks)}
law = claims.measured(scaling.coverage_law, samples, ks)
print(f"a = {law.a}\nb = {law.b}\nlargest miss {law.law.max_error:.3f}" if law else "")

# %% [markdown]
# Guessing is the floor: k blind guesses of the commonest answers of training problems. Draw it beside the chains.

# %%
common = [a for a, _ in Counter(q.answer for q in series.problems("train", 5000)).most_common(max(ks))]
tested = series.test()
hits = {p.id: [series.task.check(p, a) for a in common] for p in tested}
guessed_right = [(k, scaling.bootstrap({p: any(h[:k]) for p, h in hits.items()})) for k in ks]
plots.coverage(covered | {"guessing": guessed_right}, laws={"sampling": law.law} if law else None)

# %% [markdown]
# Now selection beside coverage, at the same n. The gap is what a better judge could still win. The linear head of
# notebook 04 is a poor judge. Does it get *worse* with more to choose from (Cobbe et al. 2021 saw it near 400)?

# %%
ceiling = dict(covered["sampling"])
judges = ["majority", "weighted_vote", "best_of_n", "best_of_n (head)"]
for _k in [k for k in ks if k in series.profile.search_n]:
    _kept = {m: scaling.accuracy(at(m, _k)).value for m in judges if at(m, _k)}
    print(f"n={_k:<3} coverage {ceiling[_k].value:.3f}", *(f"  {m} {v:.3f}" for m, v in _kept.items()))


# %%
def reachable(n):
    """{problem: is one of its first n chains right}: all that choosing among them can keep."""
    right = defaultdict(bool)
    for row in samples:
        if row.seed < n:
            right[row.problem] |= row.correct
    return right


# %%
both = max(k for k in ks if k in series.profile.search_n)
_lost = {m: scaling.paired_bootstrap(reachable(both), scaling.by_problem(at(m, both))) for m in judges if at(m, both)}
print(f"coverage of {both} chains, less what each choice keeps:", *(f"\n  {m:<16} {gap}" for m, gap in _lost.items()))

# %%
kept = {m: [(p.n, p.accuracy) for p in points if p.method == m] for m in judges}
_title = (
    f"Of {both} chains: {ceiling[both].value:.0%} hold a right one, "
    f"the vote keeps {dict(kept['majority'])[both].value:.0%}"
)
plots.coverage({"sampling": covered["sampling"]} | kept, title=_title, x="chains k", y="problems solved")

# %%
fooled = max(p.n for p in points if p.method == "best_of_n (head)")
over = scaling.difference(at("best_of_n (head)", fooled), at("best_of_n (head)", 1))
print(f"best of {fooled} by the head minus its best of 1: {over}")

# %% [markdown]
# ## A few submissions
#
# At the IOI o1 could submit 50 programs per problem. With 10,000 samples and a good rule, which 50? Here you submit k
# distinct answers out of all chains of a problem, chosen blindly, by votes, by the judge's best score, or by the sum of
# scores, and the problem counts if one is right.

# %%
k_of = sorted({k for k in (1, 2, 4, 10, 50, most) if k <= most})
rules = {"sampling": "random", "majority": "votes", "best_of_n": "score", "weighted_vote": "weighted"}
handed_in = {name: scaling.submissions(samples, k_of, rule) for name, rule in rules.items()}
_gain = {k: dict(handed_in["weighted_vote"])[k].value - dict(handed_in["sampling"])[k].value for k in k_of}
_title = ", ".join(f"{100 * gain:+.0f} points with {k}" for k, gain in _gain.items() if k in (1, 10, most))
_title = f"Choosing by weighted votes, over choosing blindly: {_title} submissions"
plots.coverage(handed_in, title=_title, x=f"submissions k of {most}", y="problems solved")

# %%
chosen_ten = claims.measured(scaling.submissions, samples, [10], "score", over="random")
print(f"10 submissions by the judge's best score, less 10 blind ones: {chosen_ten[0][1]}" if chosen_ten else "")

# %% [markdown]
# ## Easy questions, hard questions
#
# Snell et al. (arXiv 2408.03314) cut the problems into five bins by the policy's *own* pass@1. If you bin by the same
# chains that you then report, the bins follow their luck: a problem looks easy because it was lucky, and then shines.
# So of the first 64 chains the second half bins, and only methods that use the first half are reported.

# %%
half = min(most, 64) // 2
binning = [r for r in samples if half <= r.seed < 2 * half]
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
    _honest, _vain = (scaling.accuracy([r for r in first if each[r.problem] == _b]).value for each in (bins, lucky))
    print(f"bin {_b}: pass@1 {_honest:.3f} binned by other chains, {_vain:.3f} binned by the same")

# %% [markdown]
# Pass@1 needs the right answers. The judge's mean score needs none: *predicted* difficulty. How well does it sort?

# %%
guessed = scaling.quantile_bins(scaling.mean_scores(binning), k=5)
_near = [abs(bins[p] - guessed[p]) for p in bins]
print(f"the same bin: {_near.count(0) / len(_near):.0%}, one off: {_near.count(1) / len(_near):.0%}")

# %% [markdown]
# ### Exercise 1: choose here, report there
#
# It is tempting to take the best of each column. That is choosing and reporting on the same problems. Snell et al. use
# two folds: choose the setting on one half of a bin, report it on the other, swap. Write it; the next cell needs it.


# %% tags=["solution"]
def two_fold(rows, folds):
    """{problem: mark of the setting that was chosen without it}; rows: {setting: {problem: 0 or 1}}."""
    out = {}
    for here, there in (folds, folds[::-1]):
        ### BEGIN SOLUTION choose the best setting on `there`, take its marks on `here`
        choice = max(rows, key=lambda setting: sum(rows[setting][p] for p in there))
        out |= {p: rows[choice][p] for p in here}
        ### END SOLUTION
    return out


# %% tags=["mutant"]
def two_fold(rows, folds):
    out = {}
    for here in folds:
        choice = max(rows, key=lambda setting: sum(rows[setting][p] for p in here))
        out |= {p: rows[choice][p] for p in here}
    return out


# %% tags=["check"]
coins = {"heads": {"a": 1, "b": 1, "c": 0, "d": 0}, "tails": {"a": 0, "b": 0, "c": 1, "d": 1}}
assert two_fold(coins, (["a", "b"], ["c", "d"])) == dict.fromkeys("abcd", 0), (
    "luck on one fold is no skill on the other"
)
assert two_fold(coins, (["a", "c"], ["b", "d"])).keys() == set("abcd"), "every problem is reported once"

# %% [markdown]
# You run it in every bin, and beside it what you get if you choose and report on the same problems. The budget is what
# the weighted vote costs at n; every setting that costs no more may compete.

# %%
fixed = 16 if 16 in limit else max(limit)
price = {(p.method, p.n): p.x for p in points}
searches = ("greedy", "majority", "best_of_n", "weighted_vote", "beam", "dvts", "revisions")
rivals = [s for s in price if s[0] in searches and (s[1] in limit or s[0] == "greedy")]
marks = {setting: scaling.by_problem(at(*setting)) for setting in rivals}
paid = {setting: rows for setting, rows in marks.items() if price[setting] <= price["weighted_vote", fixed]}

# %%
chosen, vain = {}, {}
for _b in range(1, 6):
    _inside = sorted(p for p in bins if bins[p] == _b)
    chosen |= two_fold(paid, (_inside[::2], _inside[1::2]))
    vain |= two_fold(paid, (_inside, _inside))
print(f"best method per bin, chosen on other problems: {scaling.bootstrap(chosen)}")
print(f"chosen on the same problems (do not do this): {scaling.bootstrap(vain)}")

# %% [markdown]
# ## The compute-optimal curve
#
# The package does the same at every budget, over many random halvings. Two kinds of bins, and for the predicted ones a
# third line that pays for the chains and the judging that told the difficulty. In these every bin may spend the same
# FLOPs a problem, which is strict with hard bins: their chains are longer, so they are refused an n that the budget
# pays for on average, and the line may run below a method of one n. (Snell et al. give every question the same number
# of generations, whatever they cost.) In the fourth the bins have one purse: what an easy problem leaves, a harder one
# may spend.

# %%
allowed = [r for r in records if (r.knobs["method"], r.knobs["n"]) in marks]
budgets = sorted({x for s, x in price.items() if s in marks and x >= price["majority", 1]})
told = scaling.spent([replace(r, cost=r.cost + Cost(verifier_flops=r.knobs["judged_flops"])) for r in binning])
curves = scaling.optimal_curve(allowed, bins, budgets, method="optimal, own pass@1")
curves += scaling.optimal_curve(allowed, guessed, budgets, method="optimal, predicted")
curves += scaling.optimal_curve(allowed, guessed, budgets, charge=told, method="predicted, charged")
curves += scaling.optimal_curve(allowed, bins, budgets, shared=True, method="optimal, one purse")

# %% [markdown]
# The yardstick is best-of-n with the oracle of steps: what lies between is the verifier's. What lies above it is the
# proposals', but for chains that end right in spite of a wrong step.

# %%
beside = [p for p in points if p.method in ("best_of_n", "majority", "best_of_n (oracle)") and p.n in limit]
best = max((c for c in curves if c.method == "optimal, own pass@1"), key=lambda c: c.accuracy.value)
known = max((p for p in beside if p.method == "best_of_n (oracle)"), key=lambda p: p.n)
_title = f"The best setting per difficulty reaches {best.accuracy.value:.0%}; best of {known.n} by the oracle of steps"
plots.accuracy_vs_flops(curves + beside, title=f"{_title} {known.accuracy.value:.0%}")

# %% [markdown]
# How much does it save? The *efficiency factor*: how many times the strategy's FLOPs does best-of-n need to be as
# accurate? Where best-of-n never gets there the answer is a bound, not a number. The budget is a quarter of what the
# largest best-of-n allowed here costs; it was fixed before a number was seen.

# %%
wide = {m: [r for r in records if r.knobs["method"] == m] for m in ("best_of_n", "majority")}
quarter = max(price["best_of_n", max(limit)] / 4, 2 * price["majority", 1])
strategy = scaling.compute_optimal(allowed, bins, quarter)
factor = {m: claims.measured(scaling.efficiency, rows, m, strategy) for m, rows in wide.items()}
for _m, _factor in factor.items():
    print(f"{_m:<10} needs {_factor} times the FLOPs")

# %%
_names = {b: max(share, key=share.get) for b, share in strategy.choices.items()}
_price = sum(strategy.costs.values()) / len(strategy.costs)
print(f"{_price:.3g} FLOPs a problem; per bin, most often: {_names}")

# %% [markdown]
# That was with the difficulty known. With the judge's guess of it, and what the guess cost on the bill?

# %%
_guess = scaling.compute_optimal(allowed, guessed, quarter)
_bill = replace(_guess, costs={p: cost + told[p] for p, cost in _guess.costs.items()})
charged = claims.measured(scaling.efficiency, wide["best_of_n"], "best_of_n", _bill)
print(f"best_of_n  needs {charged} times the FLOPs, those of {half} judged chains a problem included")
blurred = _guess.lead(strategy)
print(f"accuracy at the same budget, difficulty guessed less known, neither charged: {blurred}")

# %% [markdown]
# And out of one purse, of the same mean? You see what each bin gets.

# %%
purse = scaling.compute_optimal(allowed, bins, quarter, shared=True)
pooled = claims.measured(scaling.efficiency, wide["best_of_n"], "best_of_n", purse)
print(f"best_of_n  needs {pooled} times the FLOPs of one purse")
for _b in range(1, 6):
    _bill = [cost for p, cost in purse.costs.items() if bins[p] == _b]
    print(
        f"bin {_b}: {sum(_bill) / len(_bill):.3g} FLOPs a problem, {max(purse.choices[_b], key=purse.choices[_b].get)}"
    )

# %% [markdown]
# How far would the oracle of steps get with the same choices? That tells what limits the factor.

# %%
knowing = [r for r in records if r.knobs["method"] == "best_of_n (oracle)" and r.knobs["n"] in limit]
unerring = claims.measured(
    scaling.efficiency, wide["best_of_n"], "best_of_n", scaling.compute_optimal(knowing, bins, quarter)
)
print(f"best-of-n needs {unerring} times the FLOPs of best-of-n with the oracle")

# %% [markdown]
# ## Another world: countdown
#
# In arithmetic one step at a time is the right one. In countdown (reach a target with each number once) many first
# moves lead there. A policy and a judge of the same kind were trained on it and the same searches run, if you asked for
# that: it takes a core a quarter of an hour or more, so the series does not do it by itself.

# %%
built = profile == "nano" and "search" not in missing("countdown", runs, seed)
there = Series("countdown", runs, seed).search() if built else None
countdown, their_chains = (read_records(there, name) if built else [] for name in ("records", "samples"))
print("found" if built else "not here: python -m workbench stage search --profile countdown, then run this again")

# %%
_lines = scaling.curve(countdown) if built else []
_drawn = ("greedy", "majority", "best_of_n", "weighted_vote", "beam", "best_of_n (oracle)")
_shown = [p for p in _lines if p.method in _drawn]
_last = {p.method: p.accuracy.value for p in _shown}
_title = ", ".join(f"{m} {_last[m]:.0%}" for m in ("greedy", "weighted_vote", "best_of_n (oracle)") if m in _last)
plots.accuracy_vs_flops(_shown, title=f"Countdown at the largest n: {_title}") if built else None

# %%
their_slope = claims.measured(scaling.log_slope, countdown, "weighted_vote") if built else None
print(f"a decade of FLOPs is worth {their_slope} with the judge" if their_slope else "")

# %% [markdown]
# The best setting per difficulty, as above: half of the chains bin, the other half is reported, a quarter of the FLOPs.


# %%
def quarter_of(rows, chains, methods):
    """(strategy at a quarter of the largest best-of-n's FLOPs, times its FLOPs that best-of-n needs)."""
    easy = scaling.quantile_bins(scaling.by_problem([r for r in chains if half <= r.seed < 2 * half]), k=5)
    base = [r for r in rows if r.knobs["method"] == "best_of_n"]
    budget = max(p.x for p in scaling.curve(base) if p.n in limit) / 4
    paid = [r for r in rows if r.knobs["method"] in methods and r.knobs["n"] in limit]  # greedy is n = 1
    found = scaling.compute_optimal(paid, easy, budget)
    return found, scaling.efficiency(base, "best_of_n", found)


# %%
kinds_of = {"with the judge": searches, "with the oracle": ("best_of_n (oracle)",)}
their_best = {
    k: claims.measured(quarter_of, countdown, their_chains, m) if built else None for k, m in kinds_of.items()
}
for _kind, _best in their_best.items():
    if _best:
        _names = {b: max(share, key=share.get) for b, share in _best[0].choices.items()}
        print(f"{_kind}: best-of-n needs {_best[1]} times the FLOPs; per bin, most often: {_names}")

# %% [markdown]
# ## A small model that searches, a large one that answers
#
# A second policy of one 14th the size learnt from the same examples, to the same target (half of the validation
# problems, four passes at most: it says below how far both came). It and its judge may search until they have spent
# what the large one's training and answers cost; all that training them took is taken off. R is how many tokens are
# answered for each token of training: with few answers (R = 0.16) a small model saved so much that it may think long.
# The bins are the *small* model's, who searches: by its pass@1 on chains of their own, known and not charged.

# %%
little, large, ratios = read_records(series.small()), at("greedy", 1), (0.16, 0.79, 22)
judge_alone = [r for r in little if r.knobs["method"] == "verifier alone"]  # what it answers itself is no search
little = [r for r in little if r.knobs["method"] != "verifier alone"]
own_cost = next(p.x for p in scaling.curve(little) if p.method == "greedy")
size = max(1.0, next(p.x for p in scaling.curve(large)) / own_cost)
print(f"an answer of the large one costs {size:.1f} times the small one's")

# %%
_small, _taught = series.teach(small=True), series.teach()
_bill = sum(Cost(**r.summary["cost"]).flops for r in (_small, series.chains(small=True), series.judge("small")))
_share = _bill / _taught.summary["cost"]["training_flops"]  # of the large one's: lesson, the judge's chains, the judge
print(f"validation problems right: small {_small.summary['accuracy']:.2f}, large {_taught.summary['accuracy']:.2f}")
print(f"to train the small one and its judge took {_share:.2f} of the large one's training")
fair = _share <= 1  # beyond it nothing is left to search with, and nothing below is a finding
reread = size * min(1, _share)

# %%
_small, _how = series.policy(small=True), series.profile.sampling
small_chains, _ = evaluate.samples("bins", series.test(), _small, 16, seed + 1, _how)
small_bins = scaling.quantile_bins(scaling.by_problem(small_chains), k=5)

# %%
matched = {r: scaling.flops_matched(little, large, small_bins, size=size, ratio=r, passes=reread) for r in ratios}
for _r, _m in matched.items():
    _spent = sum(_m.small.costs.values()) / len(_m.small.costs) / own_cost
    print(f"R = {_r:<4} may spend {_m.times:6.1f} times its own answer, spends {_spent:5.1f}: small - large {_m.gap}")

# %% [markdown]
# Per bin: above zero the small model wins. All its spending counts, the judge's and its training too.
# What it does not spend is a search larger than any that was run: with it the small model could do better than this.

# %%
_title = "; ".join(f"R = {r}: {100 * m.gap.value:+.0f} points" for r, m in matched.items())
lines_of = {f"R = {r}": m.by_bin for r, m in matched.items()}
plots.by_bin(lines_of, y="small with search − large", title=f"Small and thoughtful against large. {_title}", baseline=0)

# %% [markdown]
# What limits it? The small policy's coverage says what its proposals hold; what its judge keeps of that is the rest.

# %%
held = scaling.coverage(read_records(series.small(), "samples"), [1, max(series.profile.small_n)])
print("the small policy:", {k: round(e.value, 3) for k, e in held}, "large, greedy:", scaling.accuracy(large))
_kept = [p for p in scaling.curve(little) if p.n == max(series.profile.small_n)]
print("it keeps", {p.method: round(p.accuracy.value, 3) for p in _kept})

# %%
answer = scaling.by_problem(large)
easy, hardest = ({p: mark for p, mark in answer.items() if small_bins[p] in some} for some in ((1, 2, 3), (5,)))
gaps = [matched[r].small.lead(part) for r, part in ((0.16, easy), (22, hardest), (0.79, easy))]
print(f"bins 1-3 at R = 0.16: {gaps[0]}\nbin 5 at R = 22: {gaps[1]}\nbins 1-3 at R = 0.79: {gaps[2]}")
_single = scaling.by_problem(r for r in little if r.knobs["method"] == "greedy")
_judge = scaling.by_problem(judge_alone)
over_judge = matched[0.16].small.lead(_judge)
for _who, _marks in (("its policy", _single), ("its judge", _judge)):
    _gap = scaling.paired_bootstrap({p: _marks[p] for p in easy}, easy)
    print(f"bins 1-3 without search, one answer of {_who} against the large one's: {_gap}")

# %% [markdown]
# ## The training axis
#
# Teaching logged its accuracy as it went: greedy, on validation problems. FLOPs grow with steps (batches differ a
# little in length, so this is exact only at the end).


# %%
def checked(row, n):
    """A row of history with the interval of its accuracy, over n problems."""
    found = scaling.wilson(round(row["accuracy"] * n), n)
    return {**row, "n": n, "accuracy_low": found.low, "accuracy_high": found.high}


# %%
taught = series.teach()
total = taught.summary["cost"]["training_flops"]
lesson = [checked(row, series.profile.held_out) for row in taught.read("history")]
lesson = [{**row, "FLOPs": total * row["step"] / taught.summary["steps"]} for row in lesson]
log_axis = {"type": "log", "title": "training FLOPs (log scale)", "dtick": 1, "exponentformat": "power"}
_title = f"{total:.2g} FLOPs of teaching bring greedy accuracy to {lesson[-1]['accuracy']:.0%}"
plots.learning_curve(lesson, x="FLOPs", title=_title).update_xaxes(**log_axis)

# %% [markdown]
# What came after, on the same problems, one sampled chain or a few: the flywheel and reinforcement learning. Every
# rollout is on the bill, and the teaching before it.

# %%
after = {stage: series.training_curve(stage) for stage in ("flywheel-restart", "reinforce-outcome")}
grown = scaling.curve([r for rows in after.values() for r in rows])
_ends = {s: [p for p in grown if p.method == s] for s in after}
_gain = {s: line[-1].accuracy.value - line[0].accuracy.value for s, line in _ends.items()}
_title = ", ".join(f"{s} {100 * gain:+.0f} points" for s, gain in _gain.items())
plots.accuracy_vs_flops(grown, title=f"After teaching: {_title}").update_xaxes(title="training FLOPs (log scale)")

# %% [markdown]
# ## Both axes at once
#
# Each policy on the way left chains for every test problem: while it was taught, after it, and after reward. A vote
# over groups of n of these is a test-time curve; the groups of one problem are averaged. All chains of a problem read
# its prompt once, which is on the first one's bill; a vote by itself reads it, too, so every group is charged for it.


# %%
def votes(rows, n, name, most):
    """Majority over each group of n among the first `most` chains of a problem, as records; costs add up."""
    chains = defaultdict(list)
    for row in sorted(rows, key=lambda r: r.seed):
        chains[row.problem].append(row)
    groups = [(some[at : at + n], at // n) for some in chains.values() for at in range(0, most - n + 1, n)]
    return [poll(some, group, name, chains[some[0].problem][0].cost.prompt if group else 0) for some, group in groups]


# %%
reads = series.policy().flops  # what reading a prompt takes: all policies below have one shape


# %%
def poll(some, group, name, unread):
    """One record: the vote of some chains, which also reads the prompt's tokens that are on none of their bills."""
    traces = [Trace((Step(r.answer or "", True),), "answer" if r.answer else "cut") for r in some]
    answer = select.majority(traces)
    right = answer is not None and any(r.correct for r in some if r.answer == answer)
    knobs, reading = {"method": name, "n": len(some)}, Cost(prompt=unread, policy_flops=reads(0, unread, head=False))
    cost = sum((r.cost for r in some), reading)
    return Record("vote", some[0].problem, group, answer, right, cost, some[0].level, knobs)


# %%
early = defaultdict(list)
for _row in read_records(series.early()):
    early[f"{_row.knobs['step']} steps"].append(_row)
sides = {**early, "taught": samples, "after RL": read_records(series.reinforce("outcome"))}
few = series.profile.early_n
voted = [r for name, rows in sides.items() for n in (1, 2, 4, 8, 16) if n <= few for r in votes(rows, n, name, few)]
spent = {name: total * int(name.split()[0]) / taught.summary["steps"] for name in early} | {"taught": total}
spent["after RL"] = total + Cost(**series.reinforce("outcome").summary["cost"]).flops

# %%
polled = scaling.curve(voted)
plots.surface(polled, spent)

# %% [markdown]
# Jones (arXiv 2104.03113) found for board games: ten times the training replaces about fifteen times the search. You
# fit a plane to the log-odds over both axes and divide its slopes. With reinforcement learning, and without it.

# %%
teaching = {name: flops for name, flops in spent.items() if name != "after RL"}
rates = {"teaching": claims.measured(scaling.exchange_rate, voted, teaching, logit=True)}
rates["teaching and RL"] = claims.measured(scaling.exchange_rate, voted, spent, logit=True)
for _name, _rate in rates.items():
    if _rate:
        print(f"{_name}: a decade of training is worth {_rate.rate} decades of votes (miss {_rate.max_error:.2f})")

# %% [markdown]
# The miss is in log-odds. Where it is large the plane is a poor map: teaching has an *aha*, and no line follows it.
#
# How large a vote did the policy need *before* reward, to be as good as one chain *after*? You take the smallest that
# is not clearly worse, problem by problem; where all are, the largest.


# %%
def matching(gaps):
    """{n: one chain less a vote of n} -> the smallest n that is not clearly worse than the chain, else the largest."""
    return next((n for n in sorted(gaps) if claims.decide(gaps[n], "> 0") != "holds"), max(gaps))


# %%
one = [r for r in voted if (r.knobs["method"], r.knobs["n"]) == ("after RL", 1)]
margins = {p.n: scaling.difference(one, at("majority", p.n)) for p in points if p.method == "majority"}
vote_of = matching(margins)
worth = claims.told(
    margins[vote_of], "> 0", "is worth more than even", "is worth less than", "cannot be told apart from"
)
print(f"one chain after RL ({scaling.accuracy(one)}) {worth} a vote of {vote_of} before it: {margins[vote_of]}")

# %% [markdown]
# Who takes that chain in place of that vote has training paid back after some number of questions: its FLOPs over the
# FLOPs that each answer saves.

# %%
saves = price["majority", vote_of] - price["majority", 1]
_rl = spent["after RL"] - total
print(f"RL cost {_rl:.3g} FLOPs;", f"paid back after {_rl / saves:,.0f} questions" if saves > 0 else "saves none")

# %% [markdown]
# The o1 picture, with numbers. On the left are policies: one sampled chain of each, against all that their training
# took. On the right is the taught policy, which searches. The problems are the same, the test problems.


# %%
def trained(rows, name, flops):
    """The same chains, with what their policy's training cost in place of their own."""
    cost = Cost(training_flops=flops)
    return [replace(r, run=f"{r.run} {flops:.4g}", cost=cost, knobs={"method": name, "n": round(flops)}) for r in rows]


# %%
wheel = series.flywheel("restart")
spent_wheel = total + Cost(**wheel.summary["cost"]).flops
stops = [("teaching", early[name], spent[name]) for name in early] + [("teaching", samples, total)]
stops += [("reward", samples, total), ("reward", sides["after RL"], spent["after RL"])]
stops += [("flywheel", samples, total), ("flywheel", read_records(wheel), spent_wheel)]
learnt = scaling.curve([r for name, rows, flops in stops for r in trained(rows, name, flops)])

# %%
_tops = {m: max((p for p in learnt if p.method == m), key=lambda p: p.x).accuracy.value for m in ("flywheel", "reward")}
_title = f"One chain: {_tops['reward']:.0%} after reward, {_tops['flywheel']:.0%} after the flywheel; "
_title += f"searching: a decade is worth {100 * slopes['weighted_vote'].value:+.0f} points with the judge"
plots.two_axes(learnt, [p for p in points if p.method in ("majority", "weighted_vote", "beam")], _title)

# %% [markdown]
# ## Does it think longer where it is harder?
#
# You compare the length of a chain with the difficulty that *other* chains measured. Wrong chains may simply be longer,
# and hard problems have more of them, so right and wrong chains are looked at apart.

# %%
hard, operations = {p: 1 - share for p, share in own.items()}, {p.id: p.level for p in tested}
trends = scaling.adaptive_thinking(first, hard)
for _kind, _trend in trends.items():
    print(f"{_kind:<6}", f"rank correlation {_trend.spearman}" if _trend else "too few chains")

# %% [markdown]
# That is no thinking yet. A problem of more operations is harder *and* needs more steps: whoever copies the examples'
# form and adapts nothing shows the same. How much of it is left among problems of the same level?

# %%
inside = scaling.adaptive_thinking(first, hard, within=operations)
for _kind, _trend in inside.items():
    print(f"{_kind:<6}", f"same level: {_trend.spearman}" if _trend else "too few chains")


# %%
def lengths(rows):
    """{bin: mean tokens of a chain}, with intervals over problems."""
    of = defaultdict(list)
    for row in rows:
        of[row.problem].append(row.cost.sampled)
    means = {p: sum(some) / len(some) for p, some in of.items()}
    each = {b: {p: m for p, m in means.items() if bins[p] == b} for b in range(1, 6)}
    seeds = {b: min(len(of[p]) for p in inside) if inside else 0 for b, inside in each.items()}
    return {b: scaling.bootstrap(m, bounds=None, seeds=seeds[b]) if m else None for b, m in each.items()}


# %%
said = [r for r in first if "error" not in r.knobs]  # of a problem that could not be served nothing was sampled
kinds = {"right chains": [r for r in said if r.correct], "wrong chains": [r for r in said if not r.correct]}
_lines = {name: lengths(rows) for name, rows in kinds.items()}
plots.by_bin(_lines, y="tokens of a chain", form=".1f")

# %% [markdown]
# And does it obey? Budget forcing (s1, arXiv 2501.19393) ends the thinking at a cap and makes the policy answer. Its
# three metrics count tokens of *thinking*: the share of budgets kept, the slope per token, the best accuracy. What a
# chain samples beyond its cap is its forced answer, so the first is 1 by construction (a chain that ends by itself has
# its answer among these tokens). How much comes on top?


# %%
def thinking(row, cap):
    """The record of a capped chain without the answer that was forced on top of its thinking."""
    return replace(row, cost=replace(row.cost, sampled=min(row.cost.sampled, cap)))


# %%
capped = {cap: at(f"budget_forcing (cap {cap})", 1) for cap in series.profile.caps}
thought = {cap: [thinking(row, cap) for row in rows] for cap, rows in capped.items()}
forced = claims.measured(scaling.budget_forcing, thought)
print(f"control {forced.control}; scaling {forced.scaling} a token; performance {forced.performance}" if forced else "")
for _cap, _rows in capped.items():
    _beyond = sum(row.cost.sampled - t.cost.sampled for row, t in zip(_rows, thought[_cap], strict=True)) / len(_rows)
    print(f"cap {_cap}: {scaling.accuracy(_rows)}, forced answers take {_beyond:.1f} tokens a chain more")

# %% [markdown]
# ## The same code on what others recorded
#
# Public samples, if they are here (see `data/README.md`): GPT-4 on the game of 24, 100 chains each; GSM8K's released
# solutions; 100 MATH problems with eight responses each and a reward model's score. What is known of these files must
# come out.

# %%
PUBLIC = ("game24", "rm-scored", "gsm8k")
GAME24 = "gpt-4_0.7_naive_cot_sample_100_start900_end1000.json"
found_in = next((f for f in tasks.folders() if all((f / d).is_dir() for d in PUBLIC)), None)
print("recorded samples:", "found" if found_in else "not here; set WORKBENCH_DATA to the folder that has them")


# %%
def recorded(folder):
    """What the recorded samples give, beside what is known of them."""
    chains = scaling.recorded.game24(folder / "game24" / GAME24)
    fit = scaling.coverage_law(chains, sorted({round(80 ** (i / 19)) for i in range(20)})).law
    math = scaling.recorded.scored_math(folder / "rm-scored" / "math_cot_100.jsonl")
    ever = {k: round(e.value, 3) for k, e in scaling.coverage(math, [1, 8])}
    gsm = defaultdict(list)
    for row in scaling.recorded.gsm8k(folder / "gsm8k" / "example_model_solutions.jsonl"):
        gsm[row.knobs["method"]].append(row)
    order = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    released = [f"{scaling.accuracy(gsm[method]).value:.3f}" for method in order]
    handed = {rule: scaling.submissions(math, [1], rule)[0][1].value for rule in ("votes", "score")}
    return [
        ("game of 24: a, b of the law", f"{fit.a:.2f}, {fit.b:.3f}", "−3.28, −.330"),
        ("MATH: pass@1, pass@8", f"{ever[1]:.3f}, {ever[8]:.3f}", ".910, .960"),
        ("MATH: majority of 8", f"{handed['votes']:.3f}", ".930"),
        ("MATH: the best-scored of 8", f"{handed['score']:.3f}", ".940"),
        ("GSM8K: 6B, 6B verified, 175B, 175B verified", ", ".join(released), ".217, .390, .347, .562"),
    ]


# %%
public = recorded(found_in) if found_in else []
_lines = [f"| {' | '.join(row)} |" for row in public]
Markdown("| | here | known |\n|---|---|---|\n" + "\n".join(_lines) if public else "nothing to compare with")

# %% [markdown]
# ## What you saw

# %%
_top, _wide = max(ks), max(series.profile.search_n)
_kept = scaling.accuracy(at("weighted_vote", _wide))
_clear = [m for m, p in adjusted.items() if p < 0.05]
_told = [f"{t['right'].spearman.value:+.2f}" if t["right"] else "not measured" for t in (trends, inside)]
Markdown(
    f"- A decade of test-time compute is worth {slopes['weighted_vote'].value:+.3f} accuracy with the judge "
    f"({claims.told(slopes['weighted_vote'], '> 0', 'above zero', 'not above zero')}) and "
    f"{slopes['majority'].value:+.3f} with the vote. The o1 report's axes carry no numbers: there is no slope to "
    "compare these with.\n"
    f"- The line hides a bend: the last doubling of n adds {last['weighted_vote']:+.3f} with the judge and "
    f"{last['majority']:+.3f} with the vote, and one greedy chain already has {bar:.3f}.\n"
    f"- At n = {n}, {len(_clear)} of {len(adjusted)} methods differ from the vote after Holm's correction"
    f"{': ' + ', '.join(_clear) if _clear else ''}.\n"
    f"- Coverage reaches {ceiling[_top].value:.3f} at {_top} chains"
    f"{f', and its law misses by {law.law.max_error:.3f} at most' if law else ''}; the judge ends at "
    f"{_kept.value:.3f}.\n"
    f"- The best setting per bin, at a quarter of best-of-{max(limit)}'s FLOPs: best-of-n needs {factor['best_of_n']} "
    f"times as much, the vote {factor['majority']}, the difficulty not charged. Snell et al. report 2–4. Guessed and "
    f"charged: {charged}. Out of one purse: {pooled}. With the oracle of steps: {unerring}.\n"
    f"- In countdown a decade is worth {their_slope or 'not measured'} with the judge.\n"
    f"- A small model with search, less an answer {size:.0f} times dearer: {gaps[0].value:+.3f} on bins 1–3, R = 0.16 "
    f"({claims.told(gaps[0], '> 0', 'it wins', 'it does not win')}), {gaps[1].value:+.3f} on bin 5 at R = 22. "
    f"Less the one answer of its own judge: {over_judge.value:+.3f} "
    f"({claims.told(over_judge, '> 0', 'search adds to it', 'the judge alone is better')}).\n"
    f"- Rank correlation of a right chain's length with difficulty: {_told[0]}. Adapting would mean that chains get "
    "longer among problems of the same level, too: "
    f"{claims.told(inside['right'] and inside['right'].spearman, '> 0', 'they do', 'they do not')}, {_told[1]}.\n"
    f"- One chain after reinforcement learning {worth} a vote of {vote_of} before it ({margins[vote_of].value:+.3f})."
)

# %%
SNELL, O1 = "Snell et al. 2024 (2408.03314)", "OpenAI o1 report 2024"
searched = [
    claims.Claim(
        "scaling.test_time_slope",
        f"{O1}; {SNELL}",
        "the judge-weighted vote gains accuracy with every decade of test-time compute",
        "> 0",
        slopes["weighted_vote"],
    ),
    claims.Claim(
        "search.over_optimisation",
        "Cobbe et al. 2021 (2110.14168)",
        "with a poor judge, more chains to choose from make the choice worse",
        "< 0",
        over,
        "gains peak near 400 samples, then fall",
    ),
]

# %%
saved = [
    claims.Claim(
        "scaling.compute_optimal_factor",
        SNELL,
        "the best setting per difficulty, known and not charged, needs half of best-of-n's FLOPs or less",
        ">= 2",
        factor["best_of_n"],
        "2–4",
    ),
    claims.Claim(
        "scaling.compute_optimal_quarter",
        "this series: the goal that was set",
        "the best setting per difficulty, known and not charged, needs a quarter of best-of-n's FLOPs or less",
        ">= 4",
        factor["best_of_n"],
    ),
    claims.Claim(
        "scaling.compute_optimal_charged",
        SNELL,
        "the best setting per guessed difficulty, the guess on its bill, needs fewer FLOPs than best-of-n",
        "> 1",
        charged,
        "not charged there",
    ),
    claims.Claim(
        "scaling.one_purse_quarter",
        "Damani et al. 2024 (2410.04707)",
        "one purse for all, difficulty known and not charged: best-of-n's accuracy at a quarter of its FLOPs",
        ">= 4",
        pooled,
        "up to 2, a learnt allocation",
    ),
]

# %%
elsewhere = [
    claims.Claim(
        "scaling.countdown_slope",
        f"{O1}; {SNELL}",
        "countdown: the judge-weighted vote gains accuracy with every decade of test-time compute",
        "> 0",
        their_slope,
        tried=built,
    ),
    claims.Claim(
        "scaling.countdown_quarter",
        "this series: the goal that was set",
        "countdown: the best setting per difficulty, known, not charged, needs a quarter of best-of-n's FLOPs or less",
        ">= 4",
        their_best["with the judge"] and their_best["with the judge"][1],
        tried=built,
    ),
]

# %%
plane = rates["teaching"]
fits = plane is None or plane.max_error <= 0.5  # log-odds
exchanged = [
    claims.Claim(
        "scaling.small_over_large_easy",
        SNELL,
        "taught to one target, small with search beats 14 times larger, easy bins 1–3, R = 0.16, within matched FLOPs",
        "> 0",
        gaps[0] if fair else None,
    ),
    claims.Claim(
        "scaling.small_over_large_even",
        SNELL,
        "taught to one target, small with search beats 14 times larger, easy bins 1–3, R = 0.79, within matched FLOPs",
        "> 0",
        gaps[2] if fair else None,
    ),
    claims.Claim(
        "scaling.small_over_large_hard",
        SNELL,
        "the larger model wins on the small one's hardest bin at R = 22, within matched FLOPs",
        "< 0",
        gaps[1] if fair else None,
    ),
    claims.Claim(
        "scaling.small_search_over_judge",
        "this series: a control that a judge which can write must pass",
        "small with search (R = 0.16, difficulty known, not charged) is right more often than its judge, greedy",
        "> 0",
        over_judge,
    ),
    claims.Claim(
        "scaling.exchange_rate",
        "Jones 2021 (2104.03113)",
        "a decade of teaching replaces a decade of voting or more (without an interval where no plane fits)",
        ">= 1",
        plane and plane.rate if fits else replace(plane.rate, low=None, high=None),
        "about 1.2 decades, board games",
    ),
]

# %%
chosen_ways = [
    claims.Claim(
        "scaling.scored_submissions",
        f"{O1} (IOI)",
        "10 answers submitted by the judge's best score solve more problems than 10 that are chosen blindly",
        "> 0",
        chosen_ten and chosen_ten[0][1],
        "213 points with 50 chosen programs",
    ),
    claims.Claim(
        "scaling.guessed_difficulty",
        SNELL,
        "the best setting per guessed difficulty, not charged, is within 5 points of that per known, same budget",
        "> -0.05",
        blurred,
    ),
    claims.Claim(
        "adaptive.cap_slope",
        "s1, Muennighoff et al. 2025 (2501.19393)",
        "accuracy rises with the tokens that a cap allows for thinking (mean slope over pairs of caps, a token)",
        "> 0",
        forced and forced.scaling,
    ),
]

# %%
longer = claims.Claim(
    "adaptive.tokens_by_difficulty",
    O1,
    "right chains are longer where the problem is harder, among problems of the same level (rank correlation)",
    "> 0",
    inside["right"] and inside["right"].spearman,
)
found = [*searched, *saved, *elsewhere, *exchanged, *chosen_ways, longer]
claims.record(runs, profile, "08_test_time_scaling", found)
print(claims.table(found))

# %% [markdown]
# ### Exercise 2: pass@k without bias
#
# From n chains of which c are right: how likely is it that k of them, drawn without putting back, hold a right one?
# The formula that comes to mind first, 1 − (1 − c/n)^k, draws *with* putting back, and is too low.


# %% tags=["solution"]
def my_pass_at_k(n, c, k):
    """Unbiased pass@k of one problem."""
    ### BEGIN SOLUTION count the ways to draw only wrong ones; math.comb is imported
    return 1 - comb(n - c, k) / comb(n, k)
    ### END SOLUTION


# %% tags=["mutant"]
def my_pass_at_k(n, c, k):
    return 1 - (1 - c / n) ** k


# %% tags=["check"]
assert abs(my_pass_at_k(4, 1, 2) - 1 / 2) < 1e-12, "of six pairs, three hold the right one"
assert my_pass_at_k(4, 3, 2) == 1, "two wrong ones cannot be drawn"
assert all(abs(my_pass_at_k(16, c, 8) - scaling.pass_at_k(16, c, 8)) < 1e-9 for c in range(17))

# %% [markdown]
# ### Exercise 3: a slope
#
# Least squares of accuracy on the logarithm of compute, to the base ten: a decade is a factor of ten. (The natural
# logarithm gives a number 2.3 times too small, and nobody notices.)


# %% tags=["solution"]
def my_slope(flops, accuracies):
    """Accuracy per decade of compute."""
    ### BEGIN SOLUTION centre the decades, then the usual ratio
    decades = [log10(x) for x in flops]
    mean = sum(decades) / len(decades)
    return sum((d - mean) * a for d, a in zip(decades, accuracies, strict=True)) / sum((d - mean) ** 2 for d in decades)
    ### END SOLUTION


# %% tags=["mutant"]
def my_slope(flops, accuracies):
    logs = [log(x) for x in flops]
    mean = sum(logs) / len(logs)
    return sum((d - mean) * a for d, a in zip(logs, accuracies, strict=True)) / sum((d - mean) ** 2 for d in logs)


# %% tags=["check"]
assert abs(my_slope([1e6, 1e7, 1e8], [0.3, 0.4, 0.5]) - 0.1) < 1e-9, "a tenth a decade"
assert abs(my_slope([2e6, 8e6, 32e6], [0.2, 0.2, 0.2])) < 1e-12, "flat is flat"

# %% [markdown]
# ## Ledger
#
# Nothing was trained here, and nothing sampled but the chains that put the small one's problems into bins. This is what
# the records cost when they were made.

# %%
stages = {"teach": taught, "sample chains": series.chains(), "train the judge": series.judge()}
stages |= {"sample early policies": series.early(), "sample small chains": series.chains(small=True)}
stages |= {"reinforce (outcome)": series.reinforce("outcome"), "flywheel": series.flywheel()}
stages |= {"teach the small one": series.teach(small=True), "train its judge": series.judge("small")}
stages["search, all methods"] = sum(r.cost for r in records)
stages["search, small"] = sum(r.cost for r in [*little, *judge_alone])
stages["small chains for the bins"] = sum(r.cost for r in small_chains)
Markdown(ledger(stages))

# %% [markdown]
# Next: every figure here was drawn from records. Write a search of your own (notebook 05, exercise 3), give its records
# a name, and draw its line beside these.
