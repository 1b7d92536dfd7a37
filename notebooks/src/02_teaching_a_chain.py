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
# # What does a chain of thought buy?
#
# You teach two models of the same size on the same problems. One writes its steps, the other must answer at once.
# Afterwards you know what the steps are worth, how suddenly they are learnt, and where a chain breaks first.
#
# `nano` 0.5 min, 1 GB; if nothing is trained yet, about 7 min more, once: what is trained is kept.
# You visit `sft`, `fit`, `evaluate`, `labels`, `scaling` and `claims`.

# %% tags=["setup"]
import math
import re
from collections import Counter, defaultdict
from dataclasses import replace

from IPython.display import Markdown

from workbench import claims, evaluate, labels, plots, scaling, sft
from workbench.format import Encoder
from workbench.models import character_tokenizer
from workbench.pipeline import Series
from workbench.tasks import arithmetic
from workbench.types import Cost, Trace

# %% tags=["parameters"]
profile = "nano"
runs = "runs"
seed = 0

# %% [markdown]
# ## Two lessons from one problem
#
# The chain does one operation a line; its last line is the answer.

# %%
problem = arithmetic.parse("47+38-29*2")
lesson = arithmetic.demonstration(problem)
plots.show_steps(lesson)

# %% [markdown]
# The twin's lesson is the same answer without the way to it. All operations must happen inside the network, before
# the first character.

# %%
plots.show_steps(sft.direct(lesson))

# %% [markdown]
# Both are taught to predict the next character, but only of what the model itself has to write: the question is read,
# not learnt. A label of -100 means "no loss here".

# %%
encoder = Encoder(character_tokenizer())
[row] = sft.rows([(problem, lesson)], encoder)
learnt = [token for token, label in zip(row.ids, row.labels, strict=True) if label != sft.IGNORE]
encoder.tokenizer.decode(learnt)

# %% [markdown]
# ### Exercise 1: mask the question
#
# Return the labels of one row: -100 for the prompt, the token itself after it. The model shifts them by one on its
# own, so you must not.


# %% tags=["solution"]
def masked(ids, prompt_length):
    """Labels for `ids`: no loss on the first `prompt_length` tokens."""
    ### BEGIN SOLUTION as long as ids
    return [sft.IGNORE] * prompt_length + ids[prompt_length:]
    ### END SOLUTION


# %% tags=["mutant"]
def masked(ids, prompt_length):
    return [sft.IGNORE] * (prompt_length - 1) + ids[prompt_length:] + [sft.IGNORE]  # shifted here and in the model


# %% tags=["check"]
assert masked([5, 6, 7, 8], 2) == [-100, -100, 7, 8]
assert masked([5, 6], 2) == [-100, -100]
assert all(label in (-100, token) for token, label in zip([1, 2, 3], masked([1, 2, 3], 1), strict=True))

# %% [markdown]
# ## Teach both
#
# You build the series: what an earlier run left is found, the rest is made now.

# %%
series = Series(profile, runs, seed)
taught = series.teach()
twin = series.teach(reasoning=False)

# %% [markdown]
# Both start from the same random weights and read the same examples in the same order, easy ones first. Every so often
# they solve problems that they never see in training, always with their likeliest character.

# %%
history = [{"run": name, **row} for name, run in (("chain", taught), ("direct", twin)) for row in run.read("history")]
plots.learning_curve(history)

# %% [markdown]
# ## Why so sudden?
#
# How long does the chain look hopeless, and how fast does it then rise?

# %%
steps = [row["step"] for row in history if row["run"] == "chain"]
flat = [row["step"] for row in history if row["run"] == "chain" and row["accuracy"] < 0.05]
f"under 5 % until step {max(flat, default=0)} of {steps[-1]}, then {taught.summary['accuracy']:.0%} at the end"

# %% [markdown]
# Does the loss warn you? Mind that the examples get harder where the easy share of them ends.

# %%
print(f"the easy examples end at step {int(series.profile.easy * series.profile.teach.steps)}")
plots.learning_curve(history, y="loss")

# %% [markdown]
# A chain is right only if *every* character is. If each is right with probability q, then T of them are with q^T: you
# look at this by hand before you believe it.

# %%
_table = [f"| {q} | " + " | ".join(f"{q**length:.3f}" for length in (4, 20, 40)) + " |" for q in (0.8, 0.9, 0.97, 0.99)]
Markdown("\n".join(["| q | T = 4 | T = 20 | T = 40 |", "|---|---|---|---|", *_table]))

# %% [markdown]
# At T = 40 next to nothing happens between .8 and .9, and nearly everything between .97 and .99. The smooth quantity
# is there all along, and you read it off the last loss, which is the mean of −log q.

# %%
ends = {row["run"]: row for row in history}
f"mean q at the end: chain {math.exp(-ends['chain']['loss']):.3f}, direct {math.exp(-ends['direct']['loss']):.3f}"

# %% [markdown]
# ## Why stop here?
#
# The chain would be stopped on purpose, at the first check that reaches a target; the twin is not. Did it come there?

# %%
_goal, _end = series.profile.teach.target, taught.summary["accuracy"]
_came = "stopped there" if _goal and _end >= _goal else "not reached, every step was taken"
print(f"target {_goal}, accuracy at the last check {_end:.3f}: {_came}")
print(f"steps: chain {taught.summary['steps']}, twin {twin.summary['steps']}")

# %% [markdown]
# A model that is always right leaves nothing to a judge, a search or reinforcement learning. Those are the rest of
# this series, so you leave them headroom.
#
# ## Measure
#
# Now the test problems, which no choice has ever looked at: four samples of each problem from each model.

# %%
problems, sampling = series.test(), series.profile.sampling
policy, direct = series.policy(), series.policy(reasoning=False)
chain_raw, chains = evaluate.samples("chain", problems, policy, 4, seed, sampling)
direct_raw, answers = evaluate.samples("direct", problems, direct, 4, seed, sampling)

# %%
chain_records, direct_records = scaling.named(chain_raw, "chain"), scaling.named(direct_raw, "direct")
pass_1, twin_pass_1 = scaling.accuracy(chain_records), scaling.accuracy(direct_records)
print(f"chain  {pass_1}\ndirect {twin_pass_1}")

# %% [markdown]
# The likeliest character every time ("greedy") is another way to ask the same model. It has no luck, good or bad.

# %%
greedy = evaluate.search("chain", problems, "greedy", policy, sampling=sampling)
print(f"greedy minus sampled: {scaling.difference(greedy, chain_records)}")

# %% [markdown]
# ## By level
#
# A level is a number of operations. At which level do the steps begin to pay?

# %%
plots.levels(chain_records + direct_records)


# %%
def at(records, level):
    return [record for record in records if record.level == level]


by_level = {k: scaling.difference(at(chain_records, k), at(direct_records, k)) for k in arithmetic.LEVELS}
_rows = [f"| {k} | {gap} |" for k, gap in by_level.items()]
Markdown("\n".join(["| level | chain minus direct |", "|---|---|", *_rows]))

# %% [markdown]
# ## Why already at level 1?
#
# At level 1 both models must find the same one sum in one go, so a gap there cannot come from thinking longer. Compare
# what each example teaches: the characters on which a loss is taken.

# %%
exam = series.held_out()
full = sft.rows([(p, arithmetic.demonstration(p)) for p in exam], policy.encoder)
bare = sft.rows([(p, sft.direct(arithmetic.demonstration(p))) for p in exam], direct.encoder)
taught_each = [sum(len(r.ids) - r.labels.count(sft.IGNORE) for r in rows) / len(rows) for rows in (full, bare)]
"characters learnt an example: chain {:.1f}, direct {:.1f}".format(*taught_each)

# %% [markdown]
# A chain of six operations is six lessons in adding; its answer alone is hardly one. The chain also copies both
# numbers next to each other before it adds. This page cannot tell the two causes apart, but you could: train a twin
# that sees chains and is then asked for the answer at once.
#
# ## Is it only the tokens?
#
# A chain writes more, so it spends more. You give the twin its tokens back as further tries, and count a problem as
# solved if *any* of four is right: kinder than any vote could be.

# %%
words = [sum(record.cost.sampled for record in records) / len(records) for records in (chain_records, direct_records)]
any_of_4 = scaling.coverage(direct_records, ks=[4])[0][1]
print(
    f"tokens a sample: chain {words[0]:.1f}, direct {words[1]:.1f}\ndirect, any of 4: {any_of_4}; chain, one: {pass_1}"
)

# %% [markdown]
# ## Where does a chain break?
#
# The task knows which steps are right. You mark every step of every chain.

# %%
items = [(problem, trace) for problem, traces in chains for trace in traces]
marks = labels.oracle(items)

# %% [markdown]
# You look at wrong chains of different problems; a step with 0 is wrong, or comes after a wrong one.


# %%
def marked(trace, row):
    return Trace(tuple(replace(step, score=mark) for step, mark in zip(trace.steps, row, strict=True)), trace.stop)


broken = [(problem, trace, row) for (problem, trace), row in zip(items, marks, strict=True) if 0.0 in row]
some = list({problem.id: row for row in broken for problem in row[:1]}.values())[2:5]
print(*(problem.prompt for problem, *_ in some), sep="\n")
plots.show_steps(*(marked(trace, row) for _, trace, row in some))

# %% [markdown]
# ### Exercise 2: the first mistake
#
# Return the index of the first wrong step, or `None` if there is none. Steps after it mean nothing: a later sum may be
# right on its own and still lead nowhere.


# %% tags=["solution"]
def first_wrong(row):
    """Index of the first label that is 0, or None."""
    ### BEGIN SOLUTION the first one counts
    return next((i for i, mark in enumerate(row) if mark == 0), None)
    ### END SOLUTION


# %% tags=["mutant"]
def first_wrong(row):
    right = int(sum(row))  # right steps counted wherever they stand
    return right if right < len(row) else None


# %% tags=["check"]
assert first_wrong([1.0, 0.0, 0.0]) == 1
assert first_wrong([1.0, 0.0, 1.0]) == 1, "a right step after the first mistake must not move it"
assert first_wrong([1.0, 1.0]) is None
assert first_wrong([0.0]) == 0

# %% [markdown]
# What kind of mistake is it? A sum that is wrong, a right sum that does not belong there, or no sum at all.


# %%
def kind(step):
    found = re.fullmatch(r"(\d+)([-+*])(\d+)=(\d+)", step.text)
    if step.final or not found:
        return "a wrong closing answer" if step.final else "not a sum"
    a, op, b, c = found.groups()
    return (
        "a right sum in the wrong place" if arithmetic.OPS[op](int(a), int(b)) == int(c) else f"a wrong sum with {op}"
    )


kinds = Counter(kind(trace.steps[first_wrong(row)]) for _, trace, row in broken)
Markdown("\n".join(["| first mistake | chains |", "|---|---|", *(f"| {k} | {n} |" for k, n in kinds.most_common())]))

# %% [markdown]
# The hard operation is the one with the highest *rate*: you count how often each is reached with everything right
# before it, and how often it then fails.

# %%
tries = defaultdict(list)
for (_problem, _trace), _row in zip(items, marks, strict=True):
    _end = first_wrong(_row)
    for _step, _mark in list(zip(_trace.steps, _row, strict=True))[: None if _end is None else _end + 1]:
        tries["answer" if _step.final else (re.findall("[-+*]", _step.text) or ["other"])[0]].append(_mark)
_rows = [f"| {op} | {len(row)} | {1 - sum(row) / len(row):.1%} |" for op, row in sorted(tries.items())]
Markdown("\n".join(["| step with | tried | wrong |", "|---|---|---|", *_rows]))

# %% [markdown]
# If a step is right with probability s, whatever came before, then a chain of k steps is right with s^k. You hold
# that against what you measured.

# %%
sums = [mark for op, row in tries.items() if op != "answer" for mark in row]
s = sum(sums) / len(sums)
_rows = [f"| {k} | {s**k:.2f} | {scaling.accuracy(at(chain_records, k))} |" for k in arithmetic.LEVELS]
Markdown("\n".join([f"s = {s:.3f}", "", "| level k | s^k | measured |", "|---|---|---|", *_rows]))

# %% [markdown]
# ## Is the difference real?
#
# Some problems are hard for both models. Subtracting problem by problem removes that spread; two separate error bars
# keep it.
#
# ### Exercise 3: a paired standard error
#
# `a` and `b` map problems to accuracies. Return the standard error of the mean of `a - b`: the standard deviation of
# the differences (divide by n - 1) over the square root of n.


# %% tags=["solution"]
def paired_error(a, b):
    """Standard error of the mean difference, paired over problems."""
    ### BEGIN SOLUTION differences first
    gaps = [a[problem] - b[problem] for problem in a]
    mean = sum(gaps) / len(gaps)
    return math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1) / len(gaps))
    ### END SOLUTION


# %% tags=["mutant"]
def paired_error(a, b):
    total = 0.0
    for side in (a, b):  # as if the two had been measured on different problems
        mean = sum(side.values()) / len(side)
        total += sum((value - mean) ** 2 for value in side.values()) / (len(side) - 1) / len(side)
    return math.sqrt(total)


# %% tags=["check"]
_a = {"p/1": 1.0, "p/2": 0.5, "p/3": 0.0}
assert paired_error(_a, _a) == 0, "a model does not differ from itself"
assert abs(paired_error(_a, {"p/3": 0.0, "p/2": 0.0, "p/1": 0.0}) - math.sqrt(0.25 / 3)) < 1e-12
assert paired_error(_a, {"p/3": -1.0, "p/1": 0.0, "p/2": -0.5}) < 1e-12, "the same gap everywhere; the order is free"

# %% [markdown]
# The package resamples problems instead (a paired bootstrap); the width should agree.

# %%
advantage = scaling.difference(chain_records, direct_records)
error = paired_error(scaling.by_problem(chain_records), scaling.by_problem(direct_records))
print(
    f"{advantage}\n± 1.96 standard errors: {advantage.value - 1.96 * error:.3g} to {advantage.value + 1.96 * error:.3g}"
)

# %% [markdown]
# ## What you saw
#
# Two claims leave this page. The first is a promise of this series: headroom. The second is what others report:
# chains help (Wei et al. 2022, arXiv 2201.11903, by prompting large models), and small character models learn
# addition better with the steps written out (Lee et al. 2023, arXiv 2307.03381).

# %%
found = [
    claims.Claim("sft.pass_at_1", "this series: headroom on purpose",
                 "the taught policy solves some test problems and not all", "in 0.3..0.7", pass_1),
    claims.Claim("sft.chain_over_direct", "Wei et al. 2022 (2201.11903), Lee et al. 2023 (2307.03381)",
                 "a taught chain beats a direct answer", "> 0", advantage,
                 "GSM8K, prompted: .179 direct, .569 with a chain (PaLM 540B)"),
]  # fmt: skip
_ = claims.record(runs, profile, "02_teaching_a_chain", found)
print(claims.table(found))

# %%
first, last = by_level[min(by_level)], by_level[max(by_level)]
trend = "shrinks: a chain is lost with its first wrong step" if last.value < first.value else "does not shrink"
size = "so taught chains need no large model" if found[1].verdict == "holds" else "and no gain is shown here"
commonest = (kinds.most_common(1) or [("none", 0)])[0][0]
Markdown(
    f"- One sample: {pass_1.value:.2f} with a chain, {twin_pass_1.value:.2f} without.\n"
    f"- Any of four without a chain: {any_of_4.value:.2f}.\n"
    f"- From level {min(by_level)} to {max(by_level)} the gap goes from {first.value:+.2f} to {last.value:+.2f}: "
    f"it {trend}.\n"
    "- In Wei et al. the gain appears at about 10¹¹ parameters. "
    f"Here there are {policy.model.num_parameters():,}, {size}.\n"
    f"- The commonest first mistake is {commonest}."
)

# %% [markdown]
# ## Ledger
#
# The twin reads as many examples or more, but shorter ones, so it costs less: the chain pays for its gain in training
# too.

# %%
sampled = sum((record.cost for record in chain_records + direct_records + greedy), Cost())
spent = {"teach": Cost(**taught.summary["cost"]), "direct": Cost(**twin.summary["cost"]), "samples": sampled}
_rows = [f"| {name} | {c.tokens:,} | {c.flops:.2e} | {c.seconds:.0f} |" for name, c in spent.items()]
Markdown("\n".join(["| stage | tokens | FLOPs | seconds |", "|---|---|---|---|", *_rows]))

# %% [markdown]
# **Next:** notebook 03 asks who says which step is right, when no oracle is at hand.
