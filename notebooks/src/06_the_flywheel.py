# %% [markdown]
# # Can a policy teach itself to think better by default?
#
# The hypothesis says: yes. Let it write chains, keep those that came out right, train on them, write again. Nobody adds
# knowledge, only a check of the last line. You turn that wheel, and then you break each of its parts to see what it was
# for.
#
# **You will know** what STaR, ReST-EM and expert iteration do and how they differ; why each round starts from the base
# again; what a filter and dedupe are good for; whether a hint helps; and whether the model's *default* chain, at
# an unchanged prompt, got better or only surer.
#
# **Time and memory** at `nano`: a minute and 1 GB where the rounds are on disk. What is missing is built here, with a
# progress bar. `small`: 100 min and 5 GB on two cores (SmolLM2-135M on GSM8K). `gpu`: 40 min and 14 GB on one GPU (1.5B
# parameters in 4 bits). Both are estimated, after notebook 05.
#
# **Modules**: `flywheel`, `search`, `scaling`, `plots`, `claims`.

# %% tags=["setup"]
from collections import Counter

from IPython.display import Markdown

from workbench import claims, flywheel, plots, scaling
from workbench.pipeline import ledger, read_records
from workbench.pretrained import open_series
from workbench.search import drive
from workbench.types import Cost, Step, Trace
from workbench.widgets import curves

# %% tags=["parameters"]
profile = "nano"
runs = "runs"
seed = 0
changes = {}

# %% [markdown]
# ## One turn, by hand
#
# You take the taught policy and let it write four chains for each of some training problems.

# %%
series = open_series(profile, runs, seed, changes)
policy, sampling = series.policy(), series.profile.sampling
problems = series.problems("train", 24)
results = drive(problems, "majority", policy, seed=seed, sampling=sampling, n=4)

# %% [markdown]
# Each chain is checked by its last line alone. `drawn` says of every chain whether it came out right.

# %%
chains = flywheel.drawn(results, problems, "sampled")
print(Counter("right" if chain.right else "wrong" for chain in chains))

# %% [markdown]
# A right answer is no proof of right steps. You ask the task's own oracle, which the wheel never sees: of the chains
# that came out right, how many have a wrong step? (GSM8K has no oracle, so at `small` and `gpu` nobody knows.)

# %%
right = [chain for chain in chains if chain.right]
lucky = [c for c in right if not all(series.task.oracle(c.problem, c.trace.steps))] if series.exact else None
print("unknown: no oracle" if lucky is None else f"{len(lucky)} of {len(right)} right chains have a wrong step")

# %% [markdown]
# ## What stays
#
# `sift` applies the filters in a fixed order and says why each chain went.

# %%
turn = series.profile.turn.config(sampling)
kept, dropped, _ = flywheel.sift(chains, turn)
print(f"{len(kept)} of {len(chains)} stay; dropped: {dict(dropped)}")

# %% [markdown]
# Equal chains count once: a policy that is sure of a problem writes the same chain again and again, and would learn
# most from what it knows best. Of those that differ, at most `cap` a problem stay, the least alike.

# %%
plots.show_source(flywheel.varied)

# %% [markdown]
# On a hand-made problem: three chains, two of which have the same steps in another order. Which two stay?

# %%
_lines = [["2+3=5", "5+4=9"], ["5+4=9", "2+3=5"], ["3+4=7", "2+7=9"]]
_made = [flywheel.Chain(problems[0], Trace((*map(Step, some), Step("9", True))), "sampled", True) for some in _lines]
[_lines[_made.index(chain)] for chain in flywheel.varied(_made, 2)]

# %% [markdown]
# ## The wheel turns
#
# Every round samples with what the last one left, and trains **from the base again**. You look at each round: the share
# of chains that came out right, how many stayed, and pass@1 on held-out problems at the same prompt as ever.
#
# Imitation copies the dice with the chains: who learns from what was written in the heat gets unsurer. STaR wrote
# greedily. This wheel writes cool, and is judged at temperature 1.

# %%
config = series.profile.wheel.config(sampling)
print(f"written at temperature {config.temperature}, {config.samples} chains for each of {config.problems} problems")
wheel = {kind: series.flywheel(kind) for kind in series.FLYWHEELS}
history = {kind: run.read("history") for kind, run in wheel.items()}

# %%
for _row in history["restart"]:
    _kept = f"{_row['yield']:.3f} right, {_row['kept']:>5} kept" if _row["round"] else "the base"
    print(f"round {_row['round']}: {_kept}; held out {_row['held_out']:.3f}")

# %% [markdown]
# You need not wait for the end: `curves.watch_run("runs/nano/flywheel-restart")` as the last line of a cell follows the
# rounds while another process turns them. The same picture, still:

# %%
curves.figure(history["restart"], keys=["yield", "kept", "loss", "held_out"])

# %% [markdown]
# The intervals come from the problems: you resample them, each with all its chains.


# %%
def rounds(kind):
    """One row a round: pass@1 on the held-out problems, with its interval."""
    out = []
    for row in history[kind]:
        share = [right / config.checks for right in row["held_out_right"] if right is not None]
        e = scaling.bootstrap(share, seeds=config.checks)
        out.append({"run": kind, "round": row["round"], "pass@1": e.value, "pass@1_low": e.low, "pass@1_high": e.high})
    return out


# %% [markdown]
# This figure answers the first half of the title. Beside STaR with its restart you draw the same wheel that trains on
# from its last weights.

# %%
_first = rounds("restart")[0]["pass@1"]
plots.learning_curve(rounds("restart") + rounds("continued"), baseline=_first, x="round", y="pass@1")

# %% [markdown]
# ## On problems that nothing was chosen by
#
# Each wheel left four chains for every test problem, and so did the base, with the same dice. The differences are
# paired by problem.

# %%
samples = read_records(series.search(), "samples")
tested = {"base": scaling.named([r for r in samples if r.seed < 4], "base")}
tested |= {kind: scaling.named(read_records(run), kind) for kind, run in wheel.items()}
gains = {kind: scaling.difference(tested[kind], tested["base"]) for kind in wheel}
for _kind, _gain in gains.items():
    print(f"{_kind:<12} {len(history[_kind]) - 1} round(s): pass@1 {scaling.accuracy(tested[_kind])}, gain {_gain}")

# %% [markdown]
# Where does it gain? By level, base and STaR after its last round:

# %%
plots.levels(tested["base"] + tested["restart"])

# %% [markdown]
# ## Break it: no restart, no filter, no dedupe
#
# No restart is drawn above. The difference on the test problems:

# %%
restart = scaling.difference(tested["restart"], tested["continued"])
print(f"restart minus continued, after {config.rounds} rounds: {restart}")

# %% [markdown]
# The other parts are broken for one round, and compared with one round that is whole (`plain`) on the held-out
# problems. Mind how many chains each wrote: a hint writes more.


# %%
def after_one(kind):
    """{problem: share right} after the first round, of those that could be served."""
    rights = enumerate(history[kind][1]["held_out_right"])
    return {i: right / turn.checks for i, right in rights if right is not None}


# %%
whole = after_one("plain")
broken = {
    kind: scaling.paired_bootstrap(after_one(kind), whole, seeds=turn.checks)
    for kind in history
    if kind not in ("restart", "continued", "plain")
}
print(f"asked for: {turn.samples} chains for each of {turn.problems} problems")
for _kind in ("plain", *broken):
    _row, _gap = history[_kind][1], broken.get(_kind)
    _wrote = f"{_kind:<12} wrote {_row['sampled'] + _row['hinted']:>6,}, kept {_row['kept']:>6,}"
    print(f"{_wrote}: minus one plain round {_gap}" if _gap else _wrote)

# %% [markdown]
# ## A hint
#
# STaR's rationalisation shows the answer for problems that no chain got right, keeps what then comes out right, and
# removes the hint before training. Does this policy read hints? Compare the share of right chains, with and without.
# Mind that the hinted problems are the ones it had failed.

# %%
_row = history["rationalise"][1]
plain_yield, hinted_yield = _row["yield"], _row["hinted_yield"] or 0.0
print(f"no hint {plain_yield:.3f} of {_row['sampled']:,}; hinted {hinted_yield:.3f} of {_row['hinted']:,}")
print(f"the prompt it sees: {flywheel.hinted(problems[0]).prompt!r}")

# %% [markdown]
# ## Search as the teacher
#
# Expert iteration lets a search write the chains: a beam that the judge of notebook 04 guides. What does
# that cost, are its chains righter, and does the policy learn more from them?

# %%
for _kind in ("plain", "search", "prm-filter"):
    _row = history[_kind][1]
    _cost = Cost(**_row["cost"])
    _kept = f"{_row['yield']:.3f} right, {_row['kept']:>5} kept, {_cost.flops:.3g} FLOPs"
    print(f"{_kind:<10} {_kept}; held out {_row['held_out']:.3f}")

# %% [markdown]
# ## The default chain
#
# Same prompt, greedy, before and after. You look at the first test problem that changed from wrong to right (or at the
# first at all).

# %%
last = series.policy(stage="flywheel-restart")
_both = [drive(series.test(), "greedy", each, sampling=sampling) for each in (policy, last)]
greedy = [[series.task.check(r.problem, r.answer) for r in rows] for rows in _both]
_turned = [i for i, (a, b) in enumerate(zip(*greedy, strict=True)) if b and not a] or [0]
for _name, _rows in zip(("before", "after"), _both, strict=True):
    _row = _rows[_turned[0]]
    print(f"{_name:<7} {_row.problem.prompt}: {'; '.join(step.text for step in _row.leaves[0].steps)}")

# %%
skill = scaling.paired_bootstrap([float(x) for x in greedy[1]], [float(x) for x in greedy[0]])
print(f"greedy, after minus before: {skill}")

# %% [markdown]
# And coverage: does any of k chains come out right? If pass@1 rises and pass@4 does not, the wheel made the policy sure
# of what it could do.

# %%
covered = {name: scaling.coverage(tested[name], [1, 2, 4]) for name in ("base", "restart", "continued")}
once, ever = (covered["restart"][i][1].value - covered["base"][i][1].value for i in (0, -1))
plots.coverage(
    covered, title=f"STaR: right once {100 * once:+.0f} points, right at least once in four {100 * ever:+.0f}"
)

# %% [markdown]
# ## What you saw

# %%
Markdown(
    f"- {config.rounds} rounds of STaR change pass@1 on test problems by {gains['restart'].value:+.3f}; a gain of 0.15 "
    f"{claims.told(gains['restart'], '>= 0.15', 'is there', 'is not there', 'cannot be decided')}. Greedy changes by "
    f"{skill.value:+.3f}, pass@4 by {ever:+.3f}.\n"
    f"- Training on from the last weights instead of the base ends {-restart.value:+.3f} from it: "
    f"{claims.told(restart, '> 0', 'the restart pays', 'the restart costs', 'no difference that shows')}.\n"
    + "".join(
        f"- One round `{kind}` against one `plain` round: {gap.value:+.3f}, "
        f"{claims.told(gap, '< 0', 'worse', 'no worse')}.\n"
        for kind, gap in broken.items()
    )
    + f"- Of the chains without a hint {plain_yield:.3f} come out right, of the hinted ones, on harder problems, "
    f"{hinted_yield:.3f}.\n"
    f"- {'Nobody knows how many' if lucky is None else len(lucky)} of the first {len(right)} right chains had a wrong "
    "step: an answer is a lenient check."
)

# %%
found = [
    claims.Claim(
        "flywheel.star_gain",
        "STaR, Zelikman et al. 2022 (2203.14465)",
        "training on one's own right chains lifts pass@1 on unseen problems by 15 points or more",
        ">= 0.15",
        gains["restart"],
        "GSM8K: .031 prompted, .101 after (GPT-J)",
    ),
    claims.Claim(
        "flywheel.no_restart_loss",
        "STaR, Zelikman et al. 2022 (2203.14465)",
        "rounds that start from the base end higher than rounds that train on",
        "> 0",
        restart,
    ),
    claims.Claim(
        "flywheel.rationalise_gain",
        "STaR, Zelikman et al. 2022 (2203.14465)",
        "a round that hints the answer of what was not solved ends higher than a plain one (no example had a hint)",
        "> 0",
        scaling.difference(tested["rationalise"], tested["plain"]),
    ),
]
claims.record(runs, profile, "06_the_flywheel", found)
print(claims.table(found))

# %% [markdown]
# ### Exercise 1: the filter
#
# Write the answer filter for one problem's chains: keep the right ones, each text once, in the order they were drawn.


# %% tags=["solution"]
def my_filter(chains):
    """[(text, right)] -> the texts that stay."""
    ### BEGIN SOLUTION right ones only, and each text once
    return list(dict.fromkeys(text for text, right in chains if right))
    ### END SOLUTION


# %% tags=["mutant"]
def my_filter(chains):
    return [text for text, right in chains if right]


# %% tags=["check"]
assert my_filter([("c", True), ("b", False), ("c", True), ("a", True), ("d", True)]) == ["c", "a", "d"]
assert my_filter([("b", False)]) == []

# %% [markdown]
# ### Exercise 2: what a lenient filter lets through
#
# A policy writes each of k steps rightly with probability p, and a wrong step still ends in the right answer with
# probability q. What share of the chains that come out right has a wrong step?


# %% tags=["solution"]
def share_lucky(p, k, q):
    ### BEGIN SOLUTION Bayes: wrong somewhere and lucky, over all that come out right
    good = p**k
    return (1 - good) * q / (good + (1 - good) * q)
    ### END SOLUTION


# %% tags=["mutant"]
def share_lucky(p, k, q):
    return (1 - p**k) * q


# %% tags=["check"]
assert abs(share_lucky(0.5, 1, 1.0) - 0.5) < 1e-9 and share_lucky(0.9, 3, 0.0) == 0.0
assert abs(share_lucky(0.8, 2, 0.1) - 0.036 / 0.676) < 1e-9

# %% [markdown]
# ### Exercise 3: a cap is a curriculum
#
# Two problems: of the first nearly all samples come out right, of the second one in eight. Write what share of the
# training chains the second gets, from n samples each, with at most `cap` a problem.


# %% tags=["solution"]
def share_of_hard(n, cap):
    ### BEGIN SOLUTION expected right chains, each cut at the cap
    easy, hard = min(cap, n), min(cap, n / 8)
    return hard / (easy + hard)
    ### END SOLUTION


# %% tags=["mutant"]
def share_of_hard(n, cap):
    return (n / 8) / (n + n / 8)


# %% tags=["check"]
assert abs(share_of_hard(8, 8) - 1 / 9) < 1e-9 and abs(share_of_hard(8, 1) - 0.5) < 1e-9
assert share_of_hard(32, 4) > share_of_hard(32, 32)

# %% [markdown]
# ## Ledger
#
# Every round is on it: sampling, judging, training.

# %%
stages = {"teach": series.teach()} | {f"flywheel: {kind}": run for kind, run in wheel.items()}
Markdown(ledger(stages))

# %% [markdown]
# Next: 07 replaces "keep or drop" by a number. What does reward teach that examples did not?
