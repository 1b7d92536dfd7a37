# %% [markdown]
# # Who says which step is right?
#
# A process reward model learns from chains in which every step is marked right or wrong. Somebody has to make those
# marks. You meet three labellers: people, an oracle that knows the truth, and rollouts, which cost no people and need
# no oracle. Then you ask what the rollouts really say.
#
# **You will know** what "this step is right" can mean; how a row of PRM800K reads; how Monte-Carlo rollouts label a
# step and where they must start; how often their labels contradict the truth, in which direction, and what they cost.
#
# **Time and memory** at `nano`: a minute and 1 GB where the policy and its chains are there, about ten minutes more
# where they must be built first.
# `small`, with the policy: about an hour and 5 GB (SmolLM2-135M on GSM8K, which it hardly solves). `gpu`: 15 min and
# 11 GB on one GPU (1.5B parameters in 4 bits), which is estimated.
#
# **Modules**: `labels`, `tasks.arithmetic`, `policies.scripted`, `verifiers.prm` for the masking, `scaling`, `claims`.

# %% tags=["setup"]
from collections import Counter, defaultdict
from dataclasses import replace
from math import ceil, comb
from statistics import mean

from IPython.display import Markdown

from workbench import claims, labels, plots, scaling, tasks
from workbench.claims import Claim
from workbench.policies import Want
from workbench.policies.scripted import Scripted
from workbench.scaling import Estimate
from workbench.types import Cost, Node, Step, Trace

# %% tags=["parameters"]
profile = "nano"
runs = "runs"
seed = 0
changes = {}

# %% [markdown]
# Two small helpers: one puts marks on a chain so that you can look at it, one prints rows as a table.


# %%
def marked(trace, marks):
    """The same chain with a mark on every step."""
    return replace(trace, steps=tuple(replace(s, score=float(m)) for s, m in zip(trace.steps, marks, strict=True)))


def table(rows):
    """Dicts with the same keys as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return Markdown("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines))


# %% [markdown]
# ## A chain you can mark yourself
#
# You read a problem and somebody's chain for it.

# %% tags=["setup"]
task = tasks.get("arithmetic")
problem = task.parse("47+38-29*2")
chain = Trace((Step("47+38=85"), Step("29*2=68"), Step("85-68=17"), Step("17", final=True)))

# %% [markdown]
# Mark each line on paper: right or wrong? Then you ask the oracle, which knows arithmetic and follows the chain line
# by line.

# %%
truth = labels.oracle([(problem, chain)])[0]
plots.show_steps(marked(chain, truth))

# %% [markdown]
# The third line is a true equation, and still it is marked wrong.

# %%
85 - 68 == 17, truth[2]

# %% [markdown]
# So the mark does not say "this line is true". It says "up to here the chain can still be right". After the first
# wrong step nothing can be right any more, and the marks carry no news. That is why training uses the steps **up to
# and including the first wrong one** and nothing after it (Let's Verify Step by Step, arXiv 2305.20050). You mask the
# rest; −1 stands for "no lesson here".

# %%
from workbench.verifiers.prm import UNKNOWN, mask_after_error

mask_after_error(truth)

# %% [markdown]
# This is the whole oracle for arithmetic. Few subjects have one: you need a task whose steps a program can follow.

# %%
plots.show_source(task.oracle)

# %% [markdown]
# ## Labeller one: people
#
# For PRM800K (arXiv 2305.20050) people rated steps of a model's solutions to school mathematics. Here is one row in
# their format. It is made up for this page, about your chain, and leaves out the fields for time and person.

# %% tags=["setup"]
row = {
    "question": {"problem": "What is 47+38-29*2?", "ground_truth_answer": "27"},
    "label": {
        "steps": [
            {"completions": [{"text": "47+38=85", "rating": 1}], "human_completion": None, "chosen_completion": 0},
            {"completions": [{"text": "Now 29*2.", "rating": 0}], "human_completion": None, "chosen_completion": 0},
            {
                "completions": [{"text": "29*2=68", "rating": -1}, {"text": "29*2=48", "rating": -1}],
                "human_completion": {"text": "29*2=58"},
                "chosen_completion": None,
            },
        ],
        "finish_reason": "found_error",
    },
}

# %% [markdown]
# Three things are worth a look. A rating is +1, 0 or −1, and 0 means "not wrong, no progress". A step can have several
# completions, all rated. And labelling stops at the first error, where a person may write the step that should have
# come.

# %%
rated = [(i, step, c) for i, step in enumerate(row["label"]["steps"], 1) for c in step["completions"]]
person = {i: (step["human_completion"] or {}).get("text", "–") for i, step, _ in rated}
table([{"step": i, "completion": c["text"], "rating": c["rating"], "a person": person[i]} for i, _, c in rated])

# %% [markdown]
# That last habit pays twice. The written step is a right answer to the same beginning, so a model can learn from it
# directly; the next notebook does. The oracle's version of the person is `labels.corrected`.

# %%
[step.text for step in labels.corrected(problem, chain, truth).steps]

# %% [markdown]
# ## Labeller two: rollouts
#
# No people, no oracle, only a way to check final answers. Math-Shepherd (arXiv 2312.08935) stands at the **end** of a
# step, lets the policy finish the chain k times, and counts how often the answer comes out right.
#
# You make a policy whose odds you know, for the problem 2+3*4. After the right first step it finishes well three times
# in four. After the wrong first step, `2+3=5`, it looks back at the question one time in ten and still gets home.

# %% tags=["setup"]
toy = Scripted(
    {
        (): [("3*4=12", 0.5), ("2+3=5", 0.5)],
        ("3*4=12",): [("2+12=14", 0.75), ("2+12=15", 0.25)],
        ("3*4=12", "2+12=14"): [("=14", 1.0)],
        ("3*4=12", "2+12=15"): [("=15", 1.0)],
        ("2+3=5",): [("5*4=20", 0.9), ("2+12=14", 0.1)],
        ("2+3=5", "5*4=20"): [("=20", 1.0)],
        ("2+3=5", "2+12=14"): [("=14", 1.0)],
    }
)
small = task.parse("2+3*4")
good = Trace((Step("3*4=12"), Step("2+12=14"), Step("14", final=True)))
bad = Trace((Step("2+3=5"), Step("5*4=20"), Step("20", final=True)))

# %% [markdown]
# Before you run the next cell: which number should stand on the first step of each chain?

# %%
for _k in (8, 1000):
    print(_k, "rollouts:", labels.monte_carlo(toy, [(small, good), (small, bad)], k=_k)[0])

# %% [markdown]
# With many rollouts the labels go to .75 and .1, the odds that you wrote into the table. So a Monte-Carlo label is the
# **value** of a position under one policy. It is not the truth about a step: a right step got less than 1, a wrong one
# more than 0.
#
# Math-Shepherd keeps this share (the *soft* label) or asks whether **any** rollout got home (the *hard* label). Watch
# what more rollouts do to the hard label of your wrong step.

# %%
{k: round(1 - (1 - 0.1) ** k, 2) for k in (1, 2, 4, 8, 16, 32)}

# %% [markdown]
# The soft label comes closer to its value with k. The hard label of a wrong step that is sometimes repaired goes to 1:
# more rollouts make it *worse*. Here is the code that you just used.

# %%
plots.show_source(labels.monte_carlo)

# %% [markdown]
# ## The real policy
#
# You take the policy of notebook 02, one sampled chain for each of some training problems, and both labellers.

# %%
from workbench.pipeline import read_traces
from workbench.pretrained import open_series

series = open_series(profile, runs, seed, changes)
audit = series.audit()
rows = audit.read("traces")
k = audit.summary["rollouts"]
Markdown(f"{len(rows)} chains, {k} rollouts after every step")

# %% [markdown]
# Profiles `small` and `gpu` work on GSM8K, whose prose no program can follow. There the chain's own answer stands in
# for the oracle, one mark for all its steps, and "truth" below means that and no more.

# %%
referee = "the oracle" if series.exact else "the chain's answer"
Markdown(f"Below, rollouts are held against **{referee}**.")

# %% [markdown]
# You look at the chain on which the two disagree most: the oracle's marks first, then the soft labels.


# %%
def gap(row):
    """How far soft labels and oracle are apart, up to the first error."""
    known = [i for i, mark in enumerate(mask_after_error(row["labels"])) if mark != UNKNOWN]
    return sum(abs(row["labels"][i] - row["soft"][i]) for i in known)


audited = list(zip(read_traces(audit), rows, strict=True))
(odd_problem, odd_chain, odd_soft), odd_row = max(audited, key=lambda pair: gap(pair[1]))
print(odd_problem.prompt, "=", odd_problem.answer)
plots.show_steps(marked(odd_chain, odd_row["labels"]), marked(odd_chain, odd_soft))

# %% [markdown]
# ## Counting, step by step
#
# You line up both labellers on the steps up to and including the first error. The closing answer is left out: both
# labellers check it against the answer key, so they agree on it by construction.


# %%
def judged(n, problem, trace, row):
    """One dict a step that carries a label: what the oracle says, what the rollouts say, how much was left to do."""
    marks = zip(mask_after_error(row["labels"]), row["soft"], trace.steps, strict=True)
    about = {"chain": n, "problem": problem.id}
    return [
        about | {"depth": i, "left": max(0, problem.level - i), "oracle": mark, "soft": soft}
        for i, (mark, soft, step) in enumerate(marks, 1)
        if mark != UNKNOWN and not step.final
    ]


steps = [step for n, ((p, trace, _), r) in enumerate(audited) for step in judged(n, p, trace, r)]

# %% [markdown]
# The confusion table: rows are the truth, columns what a labeller calls right.

# %%
called = {"hard": lambda step: step["soft"] > 0, "soft ≥ .5": lambda step: step["soft"] >= 0.5}
table(
    [
        {f"{referee} says": word, "steps": len(same)}
        | {f"{name} calls right": sum(map(says, same)) for name, says in called.items()}
        for word, same in [(w, [s for s in steps if s["oracle"] == v]) for w, v in (("right", 1), ("wrong", 0))]
    ]
)

# %% [markdown]
# How can a chain come home from a wrong step? You look at the first error with the highest soft label.

# %%
wrong = sorted((s for s in steps if not s["oracle"]), key=lambda s: s["soft"])
case = (wrong or steps)[-1]
(_p, _trace, _soft), _row = audited[case["chain"]]
print(f"{_p.prompt} = {_p.answer}: step {case['depth']}, truth {case['oracle']:.0f}, soft label {case['soft']}")
plots.show_steps(marked(_trace, _row["labels"]), marked(_trace, _soft))

# %% [markdown]
# Such a thing happens in two ways: a second mistake cancels the first, or the policy reads the question again and
# ignores its own line. Either way the answer is right and the step is not.
#
# Now the same as shares with intervals. Steps of one problem hang together, so you average inside a problem and
# resample problems.


# %%
def over_problems(value):
    """Mean over problems of the mean of `value(step)`, with its interval."""
    groups = defaultdict(list)
    for step in steps:
        groups[step["problem"]].append(float(value(step)))
    return scaling.bootstrap({p: mean(v) for p, v in groups.items()}) if groups else Estimate(0.0, None, None, 0)


contradicts = {name: over_problems(lambda s, says=says: says(s) != s["oracle"]) for name, says in called.items()}
blind = over_problems(lambda s: not s["oracle"])
everyone = {**contradicts, "call every step right": blind}
table([{"labeller": name, f"contradicts {referee} on": e} for name, e in everyone.items()])

# %% [markdown]
# The last row is the labeller who does not look. Compare it with the soft one before you read on.
#
# ## Why right steps get low labels
#
# You plot the mean soft label of right and of wrong steps against the work that is still to do.

# %%
by_left = []
for (_left, _truth), _n in sorted(Counter((s["left"], s["oracle"]) for s in steps).items()):
    _e = scaling.bootstrap([s["soft"] for s in steps if (s["left"], s["oracle"]) == (_left, _truth)])
    _row = {"run": "right steps" if _truth else "wrong steps", "operations left": _left, "n": _n}
    by_left += [_row | {"soft label": _e.value, "soft label_low": _e.low, "soft label_high": _e.high}]
right = [_r for _r in by_left if _r["run"] == "right steps"]
ends = [f"{_r['soft label']:.2f} with {_r['operations left']} operations left" for _r in (right[:1] + right[-1:])]
found = f"Mean soft label of a right step: {', '.join(ends) or 'no right step here'}"
plots.learning_curve(by_left, x="operations left", y="soft label", title=found)

# %% [markdown]
# If the labels told the truth, one line would lie at 1 and the other at 0. Where the label of a right step falls with
# the work that is left, it does so because the *policy* may stumble later, which is no property of the step. Qwen's
# report on building PRMs (arXiv 2501.07301) makes this point: Monte-Carlo labels are values, not correctness.
#
# Both kinds of error by depth, the first operation of a chain being 1:

# %%
by_depth = defaultdict(lambda: {1.0: [], 0.0: []})
for _s in steps:
    by_depth[_s["depth"]][_s["oracle"]].append(_s["soft"])


def share(values, says):
    return f"{mean(map(says, values)):.0%} of {len(values)}" if values else "–"


# %%
table(
    [
        {
            "depth": depth,
            "right, hard says wrong": share(side[1.0], lambda v: v == 0),
            "right, soft says wrong": share(side[1.0], lambda v: v < 0.5),
            "wrong, hard says right": share(side[0.0], lambda v: v > 0),
            "wrong, soft says right": share(side[0.0], lambda v: v >= 0.5),
        }
        for depth, side in sorted(by_depth.items())
    ]
)

# %% [markdown]
# Read as a probability that the step is right, how far off is a soft label? Each dot below gathers the steps with
# about the same label. On the dashed line labels would be honest probabilities.

# %%
soft, oracle = [s["soft"] for s in steps], [int(s["oracle"]) for s in steps]
plots.reliability_plot(scaling.reliability(soft, oracle, bins=8), "soft label")

# %% [markdown]
# A label can be off as a probability and still put right steps above wrong ones. The chance that it does is the AUC.

# %%
auc = scaling.step_auc(soft, oracle) if set(oracle) == {0, 1} else None
print("no AUC: steps of one kind only" if auc is None else f"AUC of the soft labels {auc:.3f}")

# %% [markdown]
# ## What do more rollouts buy?
#
# You need not draw again. Of the n rollouts behind a label, c came home. Draw k of those n without putting back: how
# often does such a small sample hold at least so many right ones? That is one line of counting.


# %%
def chance(c, n, k, need):
    """Chance that k of n rollouts, c of the n right, hold at least `need` right ones."""
    return sum(comb(c, x) * comb(n - c, k - x) for x in range(need, k + 1)) / comb(n, k)


[round(chance(c=1, n=8, k=size, need=1), 3) for size in (1, 2, 4, 8)]

# %% [markdown]
# With one good rollout in eight, the hard label says "right" more and more surely as k grows. Now over all steps, for
# the hard label (one is enough) and the soft one (half of them).


# %%
def mislabelled(size, need):
    """Expected share of steps that `size` rollouts label against the oracle."""

    def wrong(step):
        right = chance(round(step["soft"] * k), k, size, need)
        return 1 - right if step["oracle"] else right

    return over_problems(wrong)


sizes = [size for size in (1, 2, 4, 8, 16, 32) if size <= k]
by_size = {("hard labels", n): mislabelled(n, 1) for n in sizes}
by_size |= {("soft labels", n): mislabelled(n, ceil(n / 2)) for n in sizes}

# %% [markdown]
# And this is the answer to the title: who can be believed, and how much does believing cost? The oracle sits at 0 by
# definition. The dashed line is the labeller who calls every step right.

# %%
curve = [
    {"run": name, "rollouts a step": n, "wrong labels": e.value, "wrong labels_low": e.low, "wrong labels_high": e.high}
    for (name, n), e in by_size.items()
]
last = [by_size[name, sizes[-1]].value for name in ("hard labels", "soft labels")]
headline = (
    f"With {sizes[-1]} rollouts a step hard labels are wrong on {last[0]:.0%} of steps and soft ones on {last[1]:.0%}"
)
answer = plots.learning_curve(curve, blind, x="rollouts a step", y="wrong labels", title=headline)
answer.update_xaxes(type="log", tickvals=sizes, title=f"rollouts a step (log scale), {len(rows)} problems, 1 seed")

# %% [markdown]
# ## A search for the first error
#
# Rollouts after *every* step cost the same wherever they start. If what matters is the first step from
# which no rollout comes home, you can halve the chain, roll out from the middle, and go on in the half that holds it.
# OmegaPRM (arXiv 2406.06592) does that, and keeps its rollouts in a pool, for each is a chain that may be searched.

# %%
policy = series.policy()
few = list({p.id: p for p, _, _ in read_traces(audit)}.values())[:24]

# %%
made = labels.omega(policy, few, labels.Omega(k=k, searches=4), seed=seed, sampling=series.profile.sampling)

# %%
checked = labels.audit(made.chains) if series.exact else None
places = sum(x is not None for chain in made.chains for x in chain.labels)
Markdown(
    f"{len(made.chains)} chains of {len(few)} problems, {places} labels for {made.cost.sampled:,} sampled tokens: "
    f"**{made.cost.sampled / max(1, places):.0f} tokens a label**"
)

# %% [markdown]
# The same audit, by depth, for its labels read as hard ones: a step is wrong if no rollout came home from it. Only an
# oracle can tell.

# %%
deep = [row for row in checked.depths if row["label"] == "hard"] if checked else []
table(
    [
        {"depth": r["depth"], "right steps": r["right"], "of them called wrong": r["false_negative"]}
        | {"wrong steps": r["wrong"], "of them called right": r["false_positive"]}
        for r in deep
    ]
) if deep else Markdown("Nothing to audit: no label, for every problem was too easy or too hard, or no oracle.")

# %% [markdown]
# ## Two opinions
#
# Qwen's report (arXiv 2501.07301) keeps a chain only if rollouts and a judge point at the same first error. Here the
# judge is the one that knows, so you see the most that a consensus can mend, and what share of the chains it costs.
# (Where no oracle knows the steps, a wrong answer counts as wrong from the first step on, and the share means little.)

# %%
from workbench.types import Labelled

# %%
mc = [Labelled(p, trace, tuple(soft)) for p, trace, soft in read_traces(audit) if trace.steps]
(agreed, weighed, _), share_kept = labels.consensus(policy, mc, series.truth([c.problem for c in mc]))

# %%
before, after = (labels.audit(chains).rows[0] for chains in (mc, agreed)) if agreed and series.exact else (None, None)
_found = (
    f" First errors found, before: {before['first_error']:.0f} of {before['chains']}; in what is kept: "
    f"{after['first_error']:.0f} of {after['chains']}."
    if before
    else ""
)
Markdown(f"{share_kept:.0%} of {len(mc)} chains are kept.{_found}" if agreed else "No chain is kept.")

# %% [markdown]
# ## Rows of your own, and rows of others
#
# Labels come as files. `Rows` reads PRM800K, Math-Shepherd, OmegaPRM and ProcessBench rows as a stream, tells the
# format by the fields, and lists what it leaves out. You write the row from above into a file, beside one with a
# rating that nobody can give.

# %%
import copy
import json
import tempfile
from pathlib import Path

from workbench.stepdata import Rows

# %%
_bad = copy.deepcopy(row | {"labeler": "x"})
_bad["label"]["steps"][0]["completions"][0]["rating"] = 2
path = Path(tempfile.mkdtemp()) / "rows.jsonl"
path.write_text("".join(json.dumps(one) + "\n" for one in (row | {"labeler": "x"}, _bad)))

# %%
outside = Rows(path)
for _chain in outside:
    print([step.text for step in _chain.trace.steps], _chain.labels)
outside.rejected

# %% [markdown]
# Profiles `small` and `gpu` learn to judge from PRM800K itself. This is its first chain; `nano` needs none.

# %%
if not series.exact:
    _first = next(iter(series.rows(series.profile.marks)))
    print(_first.problem.prompt, *zip([s.text for s in _first.trace.steps], _first.labels, strict=True), sep="\n")

# %% [markdown]
# And this is how such rows are made: you read, and press a key a step. `+` right, `0` neutral, `-` wrong, `u` takes
# back, `?` shows the rest. Give it a `journal=` and it goes on where you stopped; two people's marks are compared by
# `widgets.kappa`.

# %%
from workbench.widgets import Labeller

# %%
Labeller([(problem, chain), (odd_problem, odd_chain)], labeller="me")

# %% [markdown]
# ## What you saw

# %%
hard_e, soft_e = contradicts["hard"], contradicts["soft ≥ .5"]
low = [s for s in steps if s["oracle"] == 1 and s["soft"] < 0.5]
high = [s for s in steps if s["oracle"] == 0 and s["soft"] >= 0.5]
trend = {name: by_size[name, sizes[-1]].value - by_size[name, sizes[0]].value for name, _ in by_size}
Markdown(
    f"- Soft labels cut at one half contradict {referee} on **{soft_e.value:.0%}** of steps, hard labels on "
    f"**{hard_e.value:.0%}**; calling everything right would be wrong on {blind.value:.0%}.\n"
    f"- Of the soft contradictions {len(low)} are right steps called wrong and {len(high)} wrong steps called right"
    f"{': the policy stumbles later more often than it repairs' if len(low) > len(high) else ''}.\n"
    f"- From {sizes[0]} to {sizes[-1]} rollouts the error of hard labels moves by {100 * trend['hard labels']:+.0f} "
    f"points, that of soft labels by {100 * trend['soft labels']:+.0f}. What more rollouts do not mend is no noise.\n"
    f"- As a ranking of steps: {'nothing to measure here' if auc is None else f'AUC {auc:.3f}'}."
)

# %% [markdown]
# ## The claim
#
# Qwen's report says that Monte-Carlo labels are values, not correctness. You turn that into a number that could turn
# out otherwise: soft labels cut at one half contradict the truth on more than one step in twenty. Why one in twenty?
# With that error rate a chain of five steps already carries a wrong mark about every fourth time:

# %%
1 - (1 - 0.05) ** 5

# %%
claim = Claim(
    "labels.montecarlo_vs_oracle",
    "Qwen, Lessons of Developing PRMs (arXiv 2501.07301)",
    "Monte-Carlo labels are values, not truths: soft labels at .5 contradict the oracle on over 5 % of steps",
    "> 0.05",
    soft_e if soft_e.n else None,
    "a PRM from them: ProcessBench F1 .402; from people's marks .565",
)
if series.exact:
    claims.record(runs, profile, "03_step_labels", [claim])
print(claims.table([claim]) if series.exact else "Without an oracle this claim cannot be decided: none is recorded.")

# %% [markdown]
# Mind the limits. This policy stumbles often, so its values are low; a stronger one would call fewer right steps
# wrong. Oracle and answer key are exact here; in real mathematics both are not.
#
# ## Exercises
#
# ### Exercise 1: read what people wrote
#
# Turn a PRM800K row into one mark a step for the model's own completion, the first in the list: 1 for right, 0 for
# wrong. "Let's Verify" counts neutral as right.


# %% tags=["solution"]
def marks(row):
    """1 or 0 for the first completion of every step."""
    ### BEGIN SOLUTION what does a rating of 0 mean?
    return [int(step["completions"][0]["rating"] >= 0) for step in row["label"]["steps"]]
    ### END SOLUTION


# %% tags=["mutant"]
def marks(row):
    """The mistake: neutral counted as wrong."""
    return [int(step["completions"][0]["rating"] > 0) for step in row["label"]["steps"]]


# %% tags=["mutant"]
def marks(row):
    """The mistake: −1 is true in Python."""
    return [int(bool(step["completions"][0]["rating"])) for step in row["label"]["steps"]]


# %% tags=["check"]
assert marks(row) == [1, 1, 0]

# %% [markdown]
# ### Exercise 2: where does a rollout start?
#
# Label step `t` of a chain by `k` rollouts. `policy.extend([Want(problem, node, k, to_end=True)])` gives, for each
# want, k chains of new nodes; the last node of a chain has the whole `trace`. `labels.right_answer` checks it. Use
# `Node((t,), steps)` for the place where you start.


# %% tags=["solution"]
def rollout_label(policy, problem, trace, t, k=8):
    """Share of k rollouts that judge step t and reach the right answer."""
    ### BEGIN SOLUTION the step that you judge must be part of the beginning
    start = Node((t,), trace.steps[: t + 1])
    drawn = policy.extend([Want(problem.blind(), start, k, to_end=True)])[0]
    return sum(labels.right_answer(problem, nodes[-1].trace) for nodes in drawn) / k
    ### END SOLUTION


# %% tags=["mutant"]
def rollout_label(policy, problem, trace, t, k=8):
    """The mistake: rollouts begin before the step, so they judge the one before it."""
    start = Node((t,), trace.steps[:t])
    drawn = policy.extend([Want(problem.blind(), start, k, to_end=True)])[0]
    return sum(labels.right_answer(problem, nodes[-1].trace) for nodes in drawn) / k


# %% [markdown]
# From `2+12=14` your toy policy always gets home, from `2+12=15` never, and from `3*4=12` three times in four.

# %% tags=["check"]
slip = Trace((Step("3*4=12"), Step("2+12=15"), Step("15", final=True)))
assert rollout_label(toy, small, good, t=1) == 1
assert rollout_label(toy, small, slip, t=1) == 0
assert abs(rollout_label(toy, small, good, t=0, k=400) - 0.75) < 0.08

# %% [markdown]
# ### Exercise 3: two opinions
#
# Keep a chain's labels if rollouts and judge name the same first wrong step, up to that step; `None` behind it, for
# there nobody agreed on anything. Keep nothing (`None`) if they differ. "No wrong step" is an opinion, too.


# %% tags=["solution"]
def agree(rollouts, judge):
    """Labels in 0-1 (rollouts: wrong if 0; judge: wrong below .5) -> the labels that stay, or None."""
    ### BEGIN SOLUTION the first wrong step of each, then the labels up to it
    first = next((i for i, x in enumerate(rollouts) if x == 0), None)
    second = next((i for i, x in enumerate(judge) if x < 0.5), None)
    if first != second:
        return None
    keep = len(rollouts) if first is None else first + 1
    return rollouts[:keep] + [None] * (len(rollouts) - keep)
    ### END SOLUTION


# %% tags=["mutant"]
def agree(rollouts, judge):
    return rollouts if [x == 0 for x in rollouts] == [x < 0.5 for x in judge] else None


# %% tags=["check"]
assert agree([0.5, 0.0, 0.4], [0.9, 0.1, 0.2]) == [0.5, 0.0, None], "after the first error nobody is asked"
assert agree([0.5, 0.3], [0.9, 0.8]) == [0.5, 0.3] and agree([0.0, 0.0], [0.9, 0.2]) is None
assert agree([0.5, 0.3], [0.9, 0.2]) is None, "one sees no wrong step, the other does: they differ"

# %% [markdown]
# ## Ledger
#
# What the labels of this page cost. The oracle is free because arithmetic is; the rollouts are paid for step by step.

# %%
spent = {"chains": Cost(**series.chains().summary["cost"]), "rollouts": Cost(**audit.summary["cost"])}
spent |= {"search for the first error": made.cost, "consensus, beside its rollouts": weighed}
table(
    [
        {"stage": name, "tokens": f"{c.tokens:,}", "FLOPs": f"{c.flops:.2g}", "seconds": f"{c.seconds:.0f}"}
        for name, c in {**spent, "oracle": Cost()}.items()
    ]
)

# %% [markdown]
# Beside the chain itself, how much must you sample to label it?

# %%
own = mean(trace.tokens for (_, trace, _), _ in audited)
each = spent["rollouts"].sampled / len(audited)
Markdown(f"A chain has {own:.0f} tokens, its labels took {each:.0f}: **{each / max(1, own):.0f} times** as many.")

# %% [markdown]
# **Next**: notebook 04 trains models on these labels and asks whether a model can learn to judge a step.
