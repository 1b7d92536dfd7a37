# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How far does a small model get when it may think?
#
# You walk the whole road once, by hand, in seconds: a model that writes steps, a judge that scores them, a vote, a
# search, and the curve of accuracy against compute. Afterwards you know what each later notebook is about, and you
# can read every number that this series prints.
#
# `nano` 0.5 min, 1 GB; no GPU, no download, nothing is trained here.
# You visit `types`, `tasks/arithmetic`, `policies/scripted`, `verifiers/oracle`, `search`, `evaluate`, `scaling`,
# `plots`, `runs` and `claims`.

# %% tags=["setup"]
import tempfile
from collections import Counter
from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path

from IPython.display import Markdown

from workbench import claims, doctor, evaluate, plots, scaling, search, select, series
from workbench.pipeline import read_records, runs_folder
from workbench.policies import Want
from workbench.policies.scripted import Scripted
from workbench.runs import Run
from workbench.search.beam import beam
from workbench.tasks import arithmetic
from workbench.types import Cost, Node, Step, Trace
from workbench.verifiers.oracle import Oracle

# %% [markdown]
# The last two numbers are yours to move: how often the hand-made model below falls into a trap, and how often it
# slips in a sum.

# %% tags=["parameters"]
profile = "nano"
runs = "runs"
seed = 0
trap = 0.3
slip = 0.4

# %% [markdown]
# ## What was claimed
#
# In September 2024 OpenAI's report *Learning to reason with LLMs* (the o1 report) gives these shares of solved
# problems on AIME 2024, a contest of 15 problems.

# %%
report = {
    "GPT-4o, one sample": 0.12,
    "o1, one sample": 0.74,
    "o1, the most frequent answer of 64": 0.83,
    "o1, the best of 1000 by a learned scorer": 0.93,
}
Markdown("| | solved |\n|---|---|\n" + "\n".join(f"| {who} | {share:.0%} |" for who, share in report.items()))

# %% [markdown]
# Three ideas hide in that table: write your reasoning down, ask several times and vote, and let a judge decide.
# The report also shows accuracy that rises with the logarithm of compute, on axes without numbers.
# This series rebuilds each idea on a model so small that you can see all of it.
#
# ## A problem, and a model that you know by heart
#
# You take one problem; its answer is known to graders and to nobody else.

# %%
problem = arithmetic.parse("12+3*4")
problem, problem.blind().answer

# %% [markdown]
# One good chain has two steps and a closing answer.

# %%
plots.show_steps(arithmetic.demonstration(problem))

# %% [markdown]
# Your model is a table: after these steps, that line comes next with this probability. With probability `trap` it
# adds before it multiplies; with probability `slip` it forgets how to add. An `=` in front marks an answer.

# %%
table = {
    (): [("3*4=12", 1 - trap), ("12+3=15", trap)],
    ("3*4=12",): [("12+12=24", 1 - slip), ("12+12=34", slip)],
    ("12+3=15",): [("15*4=60", 1.0)],
    ("3*4=12", "12+12=24"): [("=24", 1.0)],
    ("3*4=12", "12+12=34"): [("=34", 1.0)],
    ("12+3=15", "15*4=60"): [("=60", 1.0)],
}
policy = Scripted(table)

# %% [markdown]
# You multiply along each path, and know exactly how often each answer comes.

# %%
chances = {"24": (1 - trap) * (1 - slip), "34": (1 - trap) * slip, "60": trap}
chances

# %% [markdown]
# You ask 40 times. A policy is asked to `extend` nodes of a tree; the empty node is "nothing written yet".

# %%
[drawn] = policy.extend([Want(problem.blind(), Node(), n=40, to_end=True)], seed)
traces = [chain[-1].trace for chain in drawn]
Counter(trace.answer for trace in traces)

# %% [markdown]
# ## A vote
#
# The simplest way to think longer is to ask again and count. `majority` is in the package, and short.

# %%
plots.show_source(select.majority)

# %%
select.majority(traces)

# %% [markdown]
# How good is a vote of `n`? With three possible answers you can list every outcome of `n` draws, so no sampling is
# needed. That is your first exercise.
#
# ### Exercise 1: the exact accuracy of a vote
#
# `chances` gives the probability of each answer. Return the probability that the most frequent of `n` independent
# answers is `right`; a tie goes to the answer that was drawn first, as in the package.
# (`Counter(answers).most_common(1)` keeps the order of first appearance among equals.)


# %% tags=["solution"]
def exact_vote(chances, right, n):
    """The chance that `n` draws elect `right`, by going through all of them."""
    ### BEGIN SOLUTION go through product(chances, repeat=n)
    total = 0.0
    for answers in product(chances, repeat=n):
        if Counter(answers).most_common(1)[0][0] == right:
            total += prod(chances[answer] for answer in answers)
    return total
    ### END SOLUTION


# %% tags=["mutant"]
def exact_vote(chances, right, n):
    total = 0.0
    for answers in product(chances, repeat=n):
        if answers.count(right) > n / 2:  # more than half: but the most frequent of three may have less
            total += prod(chances[answer] for answer in answers)
    return total


# %% tags=["check"]
_three = {"a": 0.4, "b": 0.3, "c": 0.3}
assert abs(exact_vote(_three, "a", 1) - 0.4) < 1e-12
assert abs(exact_vote(_three, "a", 2) - 0.4) < 1e-12, "of two different answers the first one wins"
assert abs(exact_vote(_three, "a", 3) - 0.424) < 1e-12, "two or three a's, or three different answers with a first"
assert abs(sum(exact_vote(_three, answer, 4) for answer in _three) - 1) < 1e-12, "some answer always wins"

# %% [markdown]
# You put the formula beside a measurement: the same problem under 400 names, so that each has its own luck.

# %%
copies = [replace(problem, id=f"tour/{i}") for i in range(400)]
votes = {n: evaluate.search("tour", copies, "majority", policy, n=n) for n in (1, 3, 5, 7)}

# %%
_rows = [f"| {n} | {exact_vote(chances, '24', n):.3f} | {scaling.accuracy(votes[n])} |" for n in votes]
Markdown("\n".join(["| votes | exact | measured, with its 95 % interval |", "|---|---|---|", *_rows]))

# %% [markdown]
# A vote amplifies whatever is most frequent, right or wrong. You deepen the trap, and follow the same vote.


# %%
def chances_at(t):
    return {"24": (1 - t) * (1 - slip), "34": (1 - t) * slip, "60": t}


_row = "| {} | {:.2f} | {:.2f} | {:.2f} |".format
_rows = [_row(n, *(exact_vote(chances_at(t), "24", n) for t in (0.1, 0.3, 0.6))) for n in (1, 3, 5, 7, 9)]
Markdown("\n".join(["| votes | trap .1 | trap .3 | trap .6 |", "|---|---|---|---|", *_rows]))

# %% [markdown]
# ## A judge
#
# So you want somebody who looks at the steps. A verifier scores every step between 0 and 1. The oracle knows the
# task's own truth; it is the yardstick for judges that must learn.

# %%
truth = Oracle(copies + [problem])
plots.show_source(Oracle.score)


# %% [markdown]
# You write the scores into the chains and look at one chain of each answer.


# %%
def scored(trace, judge=truth):
    [scores] = judge.score([(problem, trace)])
    return Trace(tuple(replace(s, score=x) for s, x in zip(trace.steps, scores, strict=True)), trace.stop)


plots.show_steps(*{trace.answer: scored(trace) for trace in traces}.values())

# %% [markdown]
# In the chain to 60 the *first* step is the mistake: its sum is right, but it may not be done yet. What follows a
# wrong step counts as wrong.
#
# A real judge is imperfect. You make one that checks sums only and is blind to that trap.


# %%
class SumsOnly:
    """A step scores .9 if its equation holds, else .1; it never looks at the problem."""

    aggregate = "min"

    def flops(self, prefix, new, head=True):
        return float(new)  # it reads every token once

    def score(self, items):
        return [tuple(0.9 if self.holds(step) else 0.1 for step in trace.steps) for _, trace in items]

    def holds(self, step):
        left, equals, result = step.text.partition("=")
        return not equals or arithmetic.parse(left).answer == result


# %%
plots.show_steps(*{trace.answer: scored(trace, SumsOnly()) for trace in traces}.values())

# %% [markdown]
# It catches the slip and waves the trap through. Keep that in mind when you meet learnt judges in notebook 04.
#
# ### Exercise 2: who may vote
#
# A chain that ran out of tokens has not answered, whatever its last line says. Count the votes of a list of traces:
# `{answer: number of finished chains that gave it}`.


# %% tags=["solution"]
def count_votes(traces):
    """{answer: votes}; a chain without an answer does not vote."""
    ### BEGIN SOLUTION look at trace.answer
    return dict(Counter(trace.answer for trace in traces if trace.answer is not None))
    ### END SOLUTION


# %% tags=["mutant"]
def count_votes(traces):
    return dict(Counter(trace.steps[-1].text for trace in traces if trace.stop != "cut"))  # "length" is not finished


# %% tags=["check"]
_done = Trace((Step("3*4=12"), Step("24", final=True)))
_out_of_tokens = Trace((Step("3*4=12"), Step("12+12=2")), "length")
assert count_votes([_done, _done, _out_of_tokens]) == {"24": 2}, "an unfinished chain must not vote"
assert count_votes([Trace((Step("24", final=True),), "cut")]) == {}, "malformed: no vote either"
assert count_votes([]) == {}

# %% [markdown]
# ## A search is a generator
#
# A judge of steps can do more than count at the end: it can stop bad chains early. Beam search keeps the best few
# beginnings and grows those (Snell et al. 2024, arXiv 2408.03314). Here it is, whole.

# %%
plots.show_source(beam)

# %% [markdown]
# It yields a request and waits. You play the driver: `next` gets the first request, four children of the empty node.

# %%
walk = beam(Node(), n=4, width=2)
request = next(walk)
request


# %% [markdown]
# To serve it, you ask the policy and let the judge score what came.


# %%
def serve(request):
    wants = [Want(problem.blind(), node, request.n) for node in request.nodes]
    nodes = [chain[-1] for chains in policy.extend(wants, seed) for chain in chains]
    return [replace(node, steps=scored(node.trace).steps) for node in nodes]


first = serve(request)
[(node.steps[-1].text, node.score) for node in first]

# %% [markdown]
# You send them in; it answers with the beginnings that it wants to grow.

# %%
second_request = walk.send(first)
[(node.steps[-1].text, node.score) for node in second_request.nodes]

# %% [markdown]
# Nobody does this by hand for long. `drive` serves the searches of all problems in one batch, counts every token,
# and keeps the tree.

# %%
[found] = search.drive([problem], "beam", policy, truth, seed=seed, n=8, width=2)
plots.labelled_tree(found.nodes)

# %% [markdown]
# ## Accuracy against compute
#
# Every search leaves one record a problem: the answer, whether it is right, and what it cost. In a `weighted_vote` a
# chain counts by its score. It and `beam` ask the oracle here; a third vote asks the blind judge.

# %%
plan = [("majority", "majority", None, {"n": n}) for n in (1, 2, 4, 8, 16, 32)]
plan += [("weighted_vote (sums only)", "weighted_vote", SumsOnly(), {"n": n}) for n in (1, 2, 4, 8, 16)]
plan += [("weighted_vote", "weighted_vote", truth, {"n": n}) for n in (1, 2, 4, 8, 16)]
plan += [("beam", "beam", truth, {"n": n, "width": 2}) for n in (2, 4, 8)]

# %% [markdown]
# All methods are given the same proposals (the memo), so you compare judges and not luck.

# %%
memos = {}
records = []
for _label, _method, _judge, _knobs in plan:
    records += evaluate.search("tour", copies, _method, policy, _judge, (seed,), memos, label=_label, **_knobs)
records[0]

# %% [markdown]
# The unit of compute is one token here, read or written, the judge's reading included.

# %%
points = scaling.curve(records, x="tokens")
plots.accuracy_vs_flops(points, baseline=chances["24"])

# %% [markdown]
# ## What you saw

# %%
best = sorted({p.method: p for p in points}.values(), key=lambda p: p.accuracy.value)
_rows = [f"- {p.method}, n = {p.n}: {p.accuracy} for {p.x:.0f} tokens a problem" for p in best]
Markdown("\n".join([f"One sample is right with probability {chances['24']:.2f}.", "", *_rows]))

# %% [markdown]
# Methods are compared on the same problems and at the same cost. Only an interval that stays clear of 0 counts as a
# difference.

# %%
gap = scaling.paired_at_equal_flops(records, "weighted_vote", "majority", n=8, x="tokens")
blind_gap = scaling.paired_at_equal_flops(records, "weighted_vote (sums only)", "majority", n=8, x="tokens")
print("oracle's vote minus majority, at equal tokens:", gap)
print("blind judge's vote minus majority, the same: ", blind_gap)

# %% [markdown]
# Such a number becomes a *claim*: a goal, an interval, and a verdict that follows from the two in code. This one is
# only shown: 400 copies of one toy problem prove nothing about models, so it is not recorded.

# %%
claim = claims.Claim("tour.example", "this page", "a perfect judge beats the vote", "> 0", gap)
print(claims.table([claim]))

# %% [markdown]
# ## How work is kept
#
# Every stage of the series is a folder: what was asked stands in `run.json`, rows are appended, `DONE` comes last.
# You make one, in a folder that will vanish.

# %%
folder = Path(tempfile.mkdtemp()) / "stage"
stage = Run.open(folder, {"steps": 3, "seed": seed})
stage.append("history", [{"step": i, "loss": 1 / (1 + i)} for i in range(3)])
stage.finish(loss=1 / 3)

# %% [markdown]
# Asked again with the same parameters, it is found and not made again; with others it is put aside, never lost.

# %%
again = Run.open(stage.path, {"steps": 3, "seed": seed})
other = Run.open(again.path, {"steps": 4, "seed": seed})
again.done, again.summary, other.done

# %% [markdown]
# ## The map
#
# These are the notebooks, with the question that each one answers.

# %%
_rows = [f"| `{name}` | {series.title(series.read(name).cells)} |" for name in series.names()]
Markdown("\n".join(["| notebook | question |", "|---|---|", *_rows]))

# %% [markdown]
# What can your machine do? `python -m workbench doctor` prints this table, with a remedy where something is missing.

# %%
print(doctor.table(doctor.examine("nano")))

# %% [markdown]
# When the models are trained, `python -m workbench solve "47+38-29*2"` solves a problem of yours: it prints the best
# chain with the score of each step, the votes, and the cost.
#
# ## The same figure, for real
#
# Notebook 05 makes this figure with a trained model, a trained judge and FLOPs. If its stage lies in your runs
# folder, you see it here already.

# %%
there = runs_folder(runs) / profile / "search"
shown = ("greedy", "majority", "weighted_vote", "beam")
real = read_records(Run.existing(there)) if (there / "DONE").exists() else []
real_points = scaling.curve([record for record in real if record.knobs["method"] in shown]) if real else []
plots.accuracy_vs_flops(real_points) if real else Markdown("*Not there yet: run notebook `05`, then come back.*")

# %% [markdown]
# ## Ledger
#
# What this page cost: tokens of a hand-made model, and no training.

# %%
spent = sum((r.cost for r in records), Cost())
f"{spent.sampled:,} sampled, {spent.prompt:,} prompt and {spent.judged:,} judged tokens in {spent.seconds:.1f} s"

# %% [markdown]
# **Next:** notebook 01 asks what a model reads and writes, character by character, when it reasons.
