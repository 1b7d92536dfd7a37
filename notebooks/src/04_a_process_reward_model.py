# %% [markdown]
# # Can a model learn to judge a step?
#
# You have chains with a mark on every step. Now you train models to give such marks to chains that nobody has marked,
# find out which of them can, and ask why the others cannot.
#
# **You will know** how a judge of steps is measured (ProcessBench's first-error F1); how the classic process reward
# model and the outcome model are built; why one encoder must serve training and scoring; why a language model's own
# surprise can judge where a thin head cannot; and what a judgement costs.
#
# **Time and memory** at `nano`: 2 min and 4 GB where policy and judges are there, about ten minutes more
# where they must be built first.
# `small`: 150 min and 4 GB on two cores (SmolLM2-135M, PRM800K's phase 1). `gpu`: 80 min and 14 GB on one GPU (1.5B
# parameters in 4 bits). Both are estimated, after notebook 03.
#
# **Modules**: `verifiers.prm`, `verifiers.likelihood`, `labels`, `search`, `evaluate`, `scaling`, `plots`, `claims`.

# %% tags=["setup"]
import re
from collections import defaultdict
from dataclasses import replace
from statistics import mean

from IPython.display import Markdown

from workbench import claims, evaluate, labels, plots, scaling, tasks
from workbench.claims import Claim
from workbench.grading import canonical
from workbench.scaling import Estimate
from workbench.search import Memo, drive
from workbench.select import aggregate_score
from workbench.types import Cost, Record, Step, Trace

# %% tags=["parameters"]
profile = "nano"
runs = "runs"
seed = 0
changes = {}

# %% [markdown]
# Two small helpers, as in notebook 03: marks on a chain, and rows as a table.


# %%
def marked(trace, marks):
    """The same chain with a mark on every step."""
    return replace(trace, steps=tuple(replace(s, score=float(m)) for s, m in zip(trace.steps, marks, strict=True)))


def table(rows):
    """Dicts with the same keys as a Markdown table; numbers are rounded, None is a dash."""

    def cell(v):
        return "–" if v is None else f"{v:.3g}" if isinstance(v, float) else str(v)

    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return Markdown("\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines))


# %% [markdown]
# ## How do you score a judge?
#
# A judge gives every step a number from 0 to 1. You pick a threshold; the judge's verdict is the **first** step below
# it, or "no error". ProcessBench (arXiv 2412.06559) asks two things: on wrong chains, how often is the first error
# hit exactly; on right chains, how often is the verdict "no error"? F1 is the harmonic mean of the two shares.
#
# Work it out for three chains with a threshold of one half, then run the cell.

# %%
toy_scores = [[0.9, 0.2, 0.1], [0.8, 0.9], [0.4, 0.9]]
toy_truth = [[1, 0, 0], [1, 1], [1, 1]]
scaling.first_error_rates(toy_scores, toy_truth, threshold=0.5)

# %% [markdown]
# The first error is hit, one of two right chains passes: the harmonic mean of 1 and ½ is ⅔. Why not the ordinary
# mean? Ask a judge who always says "no error":

# %%
_found, _passed, _f1 = scaling.first_error_rates([[1.0] * len(t) for t in toy_truth], toy_truth, threshold=0.5)
{"ordinary mean": (_found + _passed) / 2, "F1": _f1}

# %% [markdown]
# ## The classic: a head on step ends
#
# You take the policy's network, put one linear unit on its last layer, and read it where a step ends. This is the
# process reward model of Let's Verify Step by Step (arXiv 2305.20050) in small.

# %%
from workbench.verifiers import prm

plots.show_source(prm.step_logits)

# %% [markdown]
# It learns by binary cross-entropy on the marks, up to and including the first wrong step.

# %%
plots.show_source(prm.bce)

# %% [markdown]
# Four judges start from the same policy. `head` reads the oracle's marks and `head-rollouts` the soft labels of
# notebook 03. `orm` is the outcome model (Cobbe et al., arXiv 2110.14168): every step gets the mark of the final
# answer. The fourth comes later on this page.
#
# Profiles `small` and `gpu` have the first three, adapters on their base, and their `head` reads people's marks:
# PRM800K's phase 1. The fourth needs an oracle that writes the right step.

# %%
from workbench import pretrained

series = pretrained.open_series(profile, runs, seed, changes)
kinds = [kind for kind in ("head", "head-rollouts", "orm", "likelihood") if kind in series.VERIFIERS]
stages = {kind: series.judge(kind) for kind in kinds}
heads = [{"run": kind, **row} for kind in kinds[:3] for row in stages[kind].read("history") if "loss" in row]
drop = [f"{kind} {loss:.2f}" for kind, loss in {row["run"]: row["loss"] for row in heads}.items()]
plots.learning_curve(heads, y="loss", title=f"Three heads learn, each on its own labels: last loss {', '.join(drop)}")

# %% [markdown]
# Rollouts are dear, so `head-rollouts` had far fewer chains to read. Keep that in mind when you compare.

# %%
sources = {"head": series.chains(), "head-rollouts": series.audit(), "orm": series.chains()}
learnt = {kind: stages[kind].summary.get("chains") or len(run.read("traces")) for kind, run in sources.items()}
table([{"judge": kind, "chains to learn from": count} for kind, count in learnt.items()])

# %% [markdown]
# ## One encoder, or the score is of another token
#
# The commonest mistake in public PRM code: the label sits on one token in training and scoring reads its neighbour.
# Here one encoder makes the ids *and* the positions of step ends, for the policy and for every judge.

# %%
policy = series.policy()
problem = tasks.get("arithmetic").parse("47+38-29*2")
chain = Trace((Step("47+38=85"), Step("29*2=68"), Step("85-68=17"), Step("17", final=True)))
code = policy.encoder.encode(problem.prompt, chain.steps)
[policy.encoder.tokenizer.decode([code.ids[end]]) for end in code.step_ends]

# %% [markdown]
# Every step ends on its line break, the last one on the closing tag. You score the chain three times: the way training
# does; as a judge that reads it whole, and no rounding is allowed between these two; and the way a search will, with a
# cache. Then a step costs a step, but the sums run in another order: how much does that move?

# %%
import torch

head = series.verifier("head")
row = prm.judged(problem, chain, labels.oracle([(problem, chain)])[0], policy.encoder)
batch = {name: part.to(head.model.device) for name, part in prm.collate([row], head.pad).items()}
with torch.inference_mode():
    in_training = prm.step_logits(head.model, batch).sigmoid()[0].tolist()
whole = prm.PRM(head.model, head.encoder.tokenizer, cache=0)
at_inference, cached = (list(judge.score([(problem, chain)])[0]) for judge in (whole, head))
print(in_training, at_inference, f"equal: {in_training == at_inference}", sep="\n")
print(f"with the cache: {max(abs(a - b) for a, b in zip(at_inference, cached, strict=True)):.1g} away at most")

# %% [markdown]
# ## Another kind of judge: surprise
#
# A policy predicts the next character. To predict the 5 in `29*2=5` it must work out the product. So you can *ask it
# nothing* and watch how surprised it is by what was written. Here are the policy's probabilities for the second line
# of your chain, character by character.


# %%
def token_probabilities(model, code):
    """The probability of every token given those before it; the first has none."""
    ids = torch.tensor([code.ids], device=model.device)
    with torch.inference_mode():
        logprobs = model(ids).logits[0, :-1].log_softmax(-1)  # what stands at t speaks about t + 1
    return [None, *logprobs.gather(1, ids[0, 1:, None])[:, 0].exp().tolist()]


probabilities = token_probabilities(policy.model, code)
second = range(code.step_ends[0] + 1, code.step_ends[1] + 1)
table([{"character": repr(policy.encoder.tokenizer.decode([code.ids[i]])), "p": probabilities[i]} for i in second])

# %% [markdown]
# The likelihood judge scores a step by its **least likely token**. It is a language model of its own: the policy,
# trained further on steps that the oracle accepted, and on the step that it wrote in place of the first wrong one.

# %%
from workbench.verifiers.likelihood import Likelihood, step_logprobs

plots.show_source(step_logprobs)

# %% [markdown]
# Before you call that judge learnt, you need the judge that is *not* trained at all: the policy's own surprise. And
# one that does not look, only counts: the later a step, the more doubtful.


# %%
class NumberOnly:
    """A judge that reads nothing but the number of a step."""

    aggregate = "min"

    def flops(self, prefix, new, head=True):
        return 0.0

    def score(self, items):
        return [tuple(1 / (1 + i) for i in range(len(trace.steps))) for _, trace in items]


judges = {kind: series.verifier(kind) for kind in stages}
judges |= {"taught policy": Likelihood(policy.model, policy.encoder.tokenizer), "number only": NumberOnly()}

# %% [markdown]
# All of them judge your chain, in which the second line is wrong.

# %%
seen = {name: judge.score([(problem, chain)])[0] for name, judge in judges.items()}
lines_of = [step.text for step in chain.steps]
table([{"judge": name} | dict(zip(lines_of, scores, strict=True)) for name, scores in seen.items()])

# %% [markdown]
# ## Held-out chains
#
# You let every judge score the same fresh chains: some on validation problems, to choose its threshold, and others on
# test problems, to report. Sampling is shared through a memo, so no chain is drawn twice.


# %%
def verdicts(problems, n):
    """{judge: results} on the same n chains a problem; each result keeps its scored chains and its cost."""
    memo, more = Memo(), {"seed": seed, "sampling": series.profile.sampling, "n": n}
    return memo, {
        name: drive(problems, "best_of_n", policy, judge, memo=memo, aggregate=judge.aggregate, **more)
        for name, judge in judges.items()
    }


tried, many = series.test()[:120], min(16, max(series.profile.search_n))
_, valid = verdicts(series.held_out()[:60], n=8) if series.exact else (None, {})
memo, test = verdicts(tried, n=many)

# %% [markdown]
# The oracle marks them all; where there is none, people's marks on PRM800K's test chains take their place. How many
# chains are right from end to end?


# %%
tuned, valid_truth = series.marked("valid", valid, judges)  # {judge: [(problem, scored chain)]}, and their marks
held, truth = series.marked("test", test, judges)
table([{"chains": len(t), "right": sum(0 not in marks for marks in t)} for t in (valid_truth, truth)])

# %% [markdown]
# Now the report. AUC is the chance that a right step outscores a wrong one; ECE is how far scores are from honest
# probabilities. The threshold comes from the validation chains alone.


# %%
def both_kinds(marks):
    """F1 and AUC need chains with an error and chains without."""
    return len({0 in m for m in marks}) == 2


def up_to_error(chains, marks):
    """Scores and marks of the steps up to and including the first wrong one, in two lists."""
    pairs = [
        (step.score, mark)
        for (_, trace), known in zip(chains, marks, strict=True)
        for step, mark in zip(trace.steps, prm.mask_after_error(known), strict=True)
        if mark != prm.UNKNOWN
    ]
    return [s for s, _ in pairs], [int(m) for _, m in pairs]


# %%
def threshold(name):
    """Where the validation chains put the line between right and wrong."""
    scores = [trace.scores for _, trace in tuned[name]]
    return scaling.best_threshold(scores, valid_truth) if both_kinds(valid_truth) else 0.5


def first_error(name):
    """First-error F1 on the test chains; without chains of both kinds there is none (n = 0, no interval)."""
    if not both_kinds(truth):
        return Estimate(0.0, None, None, 0)
    scores, problems = [t.scores for _, t in held[name]], [p.id for p, _ in held[name]]
    return scaling.first_error_f1(scores, truth, lines[name], problems=problems, seed=seed)


lines = {name: threshold(name) for name in judges}
f1s = {name: first_error(name) for name in judges}


# %%
def report(name):
    """One judge's numbers; None where these chains give none."""
    scores, marks = up_to_error(held[name], truth)
    auc = scaling.step_auc(scores, marks) if len(set(marks)) == 2 else None
    rates = [None, None]
    if both_kinds(truth):
        rates = scaling.first_error_rates([t.scores for _, t in held[name]], truth, lines[name])
    error = None if name == "number only" else scaling.ece(scores, marks)  # its scores claim no probability
    return {"judge": name, "AUC": auc, "line": lines[name], "found": rates[0], "passed": rates[1], "ECE": error}


quality = {name: report(name) for name in judges}
table([row | {"F1": f1s[name]} for name, row in quality.items()])

# %% [markdown]
# ## What does a judge react to?
#
# A mean over chains hides what a judge reacts to: hard problems have more errors, so a judge can do well by smelling
# difficulty. You take that away. Take a right chain, change **one digit** of one step, and compare the two scores of
# that step. Everything before it is the same. Guessing gives one half.


# %%
def spoil(step):
    """The same step with its last digit one higher (9 becomes 0); None if it has none."""
    found = re.search(r"[0-9](?=[^0-9]*$)", step.text)
    return found and replace(
        step, text=f"{step.text[: found.start()]}{(int(found[0]) + 1) % 10}{step.text[found.end() :]}"
    )


def pairs(problem):
    """(right beginning, the same with its last step spoilt) for every step of a good chain."""
    steps = tasks.get(problem.task).demonstration(problem).steps
    for t, step in enumerate(steps):
        if spoilt := spoil(step):
            yield Trace(steps[: t + 1], "cut"), Trace((*steps[:t], spoilt), "cut")


list(pairs(tasks.get("arithmetic").parse("2+3*4")))[1][1].steps

# %% [markdown]
# The last step of the second chain should have been 2+12=14. All judges, all steps of the first test problems:


# %%
def prefers_right(judge, problems):
    """Share of pairs in which the right step has the higher score, averaged inside a problem."""
    probe = [(p, *pair) for p in problems for pair in pairs(p)]
    right, wrong = (judge.score([(p, (a, b)[side]) for p, a, b in probe]) for side in (0, 1))
    wins = defaultdict(list)
    for (p, _, _), r, w in zip(probe, right, wrong, strict=True):
        wins[p.id].append((r[-1] > w[-1]) + (r[-1] == w[-1]) / 2)
    return scaling.bootstrap({p: mean(v) for p, v in wins.items()})


one_digit = {name: prefers_right(judge, tried[:60]) for name, judge in judges.items()}
table([{"judge": name, "prefers the right digit": e} for name, e in one_digit.items()])

# %% [markdown]
# Compare head and likelihood. If your head is hardly better than guessing, here is a likely reason. A head at the end
# of a line must find out what the line *should* have said and compare. This network works out a digit in its last
# layers, at the position *before* the digit, and a position attends only to what lower layers made of earlier ones. So
# at the end of the line that work is out of reach, and a few layers are little to do it again in. The likelihood judge
# needs no comparison: the work that predicts a digit is the judgement. Larger networks have depth to spare, which may
# be why thin heads serve there. The idea is near to implicit reward models (arXiv 2412.01981) and to verifiers that
# predict a token (arXiv 2408.15240).
#
# ## Can you read the score as a probability?
#
# Each dot gathers the steps with about the same score.

# %%
main = series.MAIN
plots.reliability_plot(scaling.reliability(*up_to_error(held[main], truth)), main)

# %% [markdown]
# ## The whole report, beside judges that read nothing
#
# A number of a judge means little alone. Three cheap scorers stand beside it: one that never finds an error, one that
# sees only how long a step is and where it stands, and the policy's own probability of the step. `judging.report`
# takes labelled chains, fixes every threshold on other problems, and compares pair by pair.

# %%
from workbench import judging
from workbench.types import Labelled


def labelled(chains, marks):
    """Chains with their labels up to the first error; what follows means nothing."""
    known = [tuple(None if x == prm.UNKNOWN else x for x in prm.mask_after_error(m)) for m in marks]
    return [Labelled(p, t, m) for (p, t), m in zip(chains, known, strict=True)]


items, tuning = labelled(held["head"], truth), labelled(tuned["head"], valid_truth)
scores_of = {name: [[t.scores for _, t in part[name]] for part in (held, tuned)] for name in judges}
opinion = {judging.POLICY: (judging.policy_scores(items), judging.policy_scores(tuning))}
full = judging.report(items, scores_of["head"][0], tuning, scores_of["head"][1], opinion, name="head")
print(judging.as_text(full))

# %% [markdown]
# Does it know the step, or only the depth? Where the two lines part, the score follows the depth.

# %%
plots.score_by_depth(full.depths, "head") if full.depths else Markdown("No labelled step here.")

# %% [markdown]
# ## Does a better judge choose better?
#
# Every judge picks one of the same chains, sixteen at `nano`. Beside them stand the vote, which needs no judge, and the
# oracle, which shows the most that any judge could reach.

# %%
shared = {"memo": memo, "seed": seed, "sampling": series.profile.sampling, "n": many}
chosen = dict(test) | {
    "majority": drive(tried, "majority", policy, **shared),
    "oracle": drive(tried, "best_of_n", policy, series.truth(tried), **shared),
}
picks = {name: [evaluate.record("judging", r, seed, method=name, n=many) for r in rs] for name, rs in chosen.items()}

# %% [markdown]
# The difference to the vote is taken problem by problem.

# %%
right = {name: scaling.accuracy(records) for name, records in picks.items()}
versus = {name: scaling.difference(records, picks["majority"]) for name, records in picks.items()}
table([{f"best of {many} by": name, "accuracy": right[name], "minus the vote": versus[name]} for name in picks])

# %% [markdown]
# One N is one draw. Of the same chains `judging.best_of_n` counts every choice of N, exactly. The ceiling is
# what the oracle would pick.


# %%
def responses(name):
    """{problem: its chains as the judge scored them: the answer, whether it is right, the weakest step's score}"""
    out = defaultdict(list)
    for p, t in [(r.problem, leaf.trace) for r in test[name] for leaf in r.leaves]:
        score = aggregate_score(t, judges[name].aggregate)
        answered = None if t.answer is None else canonical(t.answer)
        out[p.id].append(judging.Response(answered, labels.right_answer(p, t), score))
    return out


choice = judging.best_of_n(responses("head"), seed=seed)
plots.best_of_n(choice)

# %% [markdown]
# And what the choice optimises, beside what you want: a score that rises while accuracy does not is a judge that is
# fooled.

# %%
scored = all(row.reward for row in choice.rows)
plots.over_optimisation(choice) if scored else Markdown("No chain of these reached an answer.")

# %% [markdown]
# Qwen's report (arXiv 2501.07301) found first-generation PRMs no better than the vote at best-of-8. Look at which of
# your judges are below it, and at their F1 above. Then compare the taught policy with the likelihood judge. A judge
# that knows no more than the writer mostly picks what the writer says most often, and that is the vote already. How
# often does a judge pick the very answer that the vote picks?

# %%
voted = {record.problem: record.answer for record in picks["majority"]}
agree = {name: mean(r.answer == voted[r.problem] for r in picks[name]) for name in judges}
table([{"judge": name, "picks the vote's answer": f"{share:.0%}"} for name, share in agree.items()])

# %% [markdown]
# Training on marks has to add what the writer did not know. Where a judge both leaves the vote and gains on it, it did.
#
# ## What does a judgement cost?

# %%
costs = {name: sum(r.cost for r in results) for name, results in test.items()}
price = {name: c.verifier_flops / max(1, c.verifier_calls) for name, c in costs.items()}
writing = costs["head"].policy_flops / max(1, costs["head"].verifier_calls)
table([{"judge": name, "FLOPs a chain": f, "share of writing it": f / writing} for name, f in price.items()])

# %% [markdown]
# A head leaves out the layer that turns states into characters; that is the whole difference in price. Reading a chain
# costs about as much as writing it, which notebook 05 puts on every bill.
#
# ## The answer
#
# A verdict is exactly right when it names the first error of a wrong chain, or passes a right one. You make that a
# record for every chain and plot it by the number of operations. The judge that only counts is the baseline.


# %%
def exact(name):
    """One record a chain: was the verdict exactly right?"""
    out, order = [], defaultdict(int)
    for (p, trace), marks in zip(held[name], truth, strict=True):
        said = next((i for i, s in enumerate(trace.scores) if s < lines[name]), None)
        was = marks.index(0) if 0 in marks else None
        out.append(Record("judging", p.id, order[p.id], str(said), said == was, level=p.level, knobs={"method": name}))
        order[p.id] += 1
    return out


exactness = {name: exact(name) for name in judges}

# %%
drawn = tuple(dict.fromkeys((main, "taught policy", "head", "number only")))
headline = "First-error F1: " + ", ".join(f"{name} {f1s[name].value:.2f}" for name in drawn)
answer = plots.levels([r for name in drawn for r in exactness[name]], headline)
answer.update_yaxes(title="chains judged exactly right").update_xaxes(title="operations in the problem")

# %% [markdown]
# Paired over problems, how much of this is training and how much came with the policy?

# %%
rest = {name: scaling.difference(exactness[main], exactness[name]) for name in drawn[1:-1]}
table([{f"{main} minus": name, "chains judged exactly right": e} for name, e in rest.items()])

# %% [markdown]
# ## What you saw

# %%
ranked = sorted(f1s, key=lambda name: -f1s[name].value)
below = [name for name in judges if versus[name].value < 0]
_other = "taught policy" if main == "head" else "head"
_exact = ", ".join(f"{100 * e.value:+.0f} points against the {name}" for name, e in rest.items())
Markdown(
    f"- Best first-error F1: **{ranked[0]}** {f1s[ranked[0]]}; last: {ranked[-1]} {f1s[ranked[-1]].value:.2f}.\n"
    f"- Of one changed digit the {_other} notices {one_digit[_other].value:.0%}, the {main} "
    f"{one_digit[main].value:.0%} (guessing: 50%).\n"
    f"- Exact verdicts of the {main} judge: {_exact}.\n"
    f"- Choosing among {many}, below the vote: {', '.join(below) or 'none of them'}."
)

# %% [markdown]
# ## The claim
#
# Which number would mean "yes, it can"? On ProcessBench the PRM trained on people's marks, PRM800K, reaches a mean F1
# of .565 (arXiv 2501.07301). Yours is another task; `nano`'s is easier in its language, with an exact oracle behind it,
# so passing that number does not make your judge the better one. It is the level at which the field calls a judge
# useful, and the whole interval has to clear it.

# %%
claim = Claim(
    "prm.first_error_f1",
    "Qwen, Lessons of Developing PRMs (arXiv 2501.07301): PRM800K on ProcessBench",
    "a learnt judge finds the first error: F1 on test chains above the published .565 (another task)",
    "> 0.565",
    f1s[main] if f1s[main].n else None,
    ".565",
)
claims.record(runs, profile, "04_a_process_reward_model", [claim])
print(claims.table([claim]))

# %% [markdown]
# ## The same on a real base
#
# Nothing of this needs a small model: run this page at profile `small` or `gpu`. Or train a PRM alone, from your own
# rows; the profile changes scalars only. A tree of chains is packed, so that what they share is read once, and the base
# may lie in 4 bits. What it takes is computed before anything is fetched.
#
# ```
# python -m workbench prm train ROWS --reported OTHER_ROWS --profile small --out runs/prm
# python -m workbench prm evaluate runs/prm/model OTHER_ROWS
# ```


# %%
def needs(size):
    """GB by what holds them, at four bytes a number of the base (two where bfloat16 is fast)."""
    return {name: f"{held / 1e9:.2f}" for name, held in vars(size.memory(4)).items()}


table(
    [
        {"profile": name, "base": size.base, "method": size.training.method, "minutes": size.minutes, **needs(size)}
        | {"all, GB": f"{size.memory(4).total / 1e9:.1f}"}
        for name, size in prm.SIZES.items()
    ]
)

# %% [markdown]
# And the most that each kind of stage holds when these pages run at a profile; `python -m workbench doctor --profile
# small` holds it against this machine.

# %%
held_at_once = {name: pretrained.needs(pretrained.profile(name), width) for name, width in (("small", 4), ("gpu", 2))}
table(
    [
        {"profile": name} | {f"{stage}, GB": f"{size / 1e9:.1f}" for stage, size in needed.items()}
        for name, needed in held_at_once.items()
    ]
)

# %% [markdown]
# ## Exercises
#
# ### Exercise 1: the verdict
#
# Return the index of the first step that scores below the threshold, or None for "no error".


# %% tags=["solution"]
def verdict(scores, threshold):
    """Which step is the first error?"""
    ### BEGIN SOLUTION the first one below, not the lowest one
    return next((i for i, score in enumerate(scores) if score < threshold), None)
    ### END SOLUTION


# %% tags=["mutant"]
def verdict(scores, threshold):
    """The mistake: the worst step is taken for the first wrong one."""
    worst = min(range(len(scores)), key=lambda i: scores[i])
    return worst if scores[worst] < threshold else None


# %% [markdown]
# After a first error the steps that build on it often score lower still.

# %% tags=["check"]
assert verdict([0.9, 0.3, 0.1], threshold=0.5) == 1
assert verdict([0.9, 0.8], threshold=0.5) is None
assert verdict([0.2], threshold=0.5) == 0

# %% [markdown]
# ### Exercise 2: the least likely token
#
# You get the probability of every token, the position `start` where the first step begins, and the positions `ends` of
# the last token of each step. Return each step's smallest probability. Every token belongs to exactly one step.


# %% tags=["solution"]
def worst_tokens(probabilities, start, ends):
    """The score that the likelihood judge gives to each step."""
    ### BEGIN SOLUTION a step begins right after the one before it ended, and its last token counts
    begins = [start, *(end + 1 for end in ends[:-1])]
    return [min(probabilities[a : b + 1]) for a, b in zip(begins, ends, strict=True)]
    ### END SOLUTION


# %% tags=["mutant"]
def worst_tokens(probabilities, start, ends):
    """The mistake: off by one, so a step loses its last token and takes the last of the step before."""
    begins = [start, *ends[:-1]]
    return [min(probabilities[a:b]) for a, b in zip(begins, ends, strict=True)]


# %% [markdown]
# Below, the prompt has two tokens and the steps have three and two. The chain stops too early in its first step: the
# line break is the unlikely token.

# %% tags=["check"]
assert worst_tokens([None, 0.5, 0.9, 0.8, 0.1, 0.7, 0.6], start=2, ends=[4, 6]) == [0.1, 0.6]
assert worst_tokens([None, 0.3, 0.2], start=1, ends=[1, 2]) == [0.3, 0.2]

# %% [markdown]
# ### Exercise 3: one score for a chain
#
# A search needs one number for a finished chain. Return the smallest step score, and None for a chain that never came
# to an answer: it must not win because it stopped before its first mistake.


# %% tags=["solution"]
def chain_score(trace):
    """The weakest step of a finished chain."""
    ### BEGIN SOLUTION a chain without an answer has no score
    return min(trace.scores) if trace.answer is not None else None
    ### END SOLUTION


# %% tags=["mutant"]
def chain_score(trace):
    """The mistake: an unfinished chain looks perfect."""
    return min(trace.scores)


# %% tags=["check"]
open_chain = Trace((Step("2+3=5", score=0.99),), "length")
closed_chain = Trace((Step("2+3=5", score=0.9), Step("5", final=True, score=0.8)))
assert chain_score(closed_chain) == 0.8
assert chain_score(open_chain) is None

# %% [markdown]
# ### Exercise 4: first errors
#
# ProcessBench asks for the *first* wrong step. Its F1 is the harmonic mean of two shares: of the chains with an error,
# those whose first step under the threshold is the first wrong one; of the others, those with no step under it.


# %% tags=["solution"]
def my_first_error_f1(scores, truth, threshold):
    """Lists of step scores and of 1 / 0 a chain -> F1 (0 where either share is 0)."""
    ### BEGIN SOLUTION where the first step under the threshold stands, against where the first wrong one does
    hits = {True: [], False: []}
    for row, marks in zip(scores, truth, strict=True):
        said = next((i for i, s in enumerate(row) if s < threshold), None)
        is_ = next((i for i, m in enumerate(marks) if m == 0), None)
        hits[is_ is not None].append(said == is_)
    found, passed = (sum(h) / len(h) for h in (hits[True], hits[False]))
    return 2 * found * passed / (found + passed) if found + passed else 0.0
    ### END SOLUTION


# %% tags=["mutant"]
def my_first_error_f1(scores, truth, threshold):
    pairs = [(s < threshold, m == 0) for row, marks in zip(scores, truth) for s, m in zip(row, marks)]  # noqa: B905
    good, said, wrong = (sum(map(f, pairs)) for f in (all, lambda p: p[0], lambda p: p[1]))
    return 2 * good / (said + wrong)


# %% tags=["check"]
_scores, _truth = [[0.9, 0.2, 0.1], [0.8, 0.9], [0.4, 0.9], [0.3, 0.9]], [[1, 0, 0], [1, 1], [1, 1], [1, 0]]
assert abs(my_first_error_f1(_scores, _truth, 0.5) - scaling.first_error_f1(_scores, _truth, 0.5).value) < 1e-9
assert my_first_error_f1([[0.9], [0.9]], [[0], [1]], 0.5) == 0.0

# %% [markdown]
# ## Ledger
#
# Training the judges, and the chains that this page drew and judged.

# %%
spent = {f"train {kind}": Cost(**run.summary["cost"]) for kind, run in stages.items()}
only = {"sampled": 0, "prompt": 0, "policy_flops": 0.0, "policy_seconds": 0.0}
spent |= {"draw test chains": replace(costs["head"], judged=0, verifier_flops=0.0, verifier_seconds=0.0)}
spent |= {f"judge with {name}": replace(cost, **only) for name, cost in costs.items()}
ledger = [(name, f"{c.tokens:,}", f"{c.flops:.2g}", f"{c.seconds:.0f}") for name, c in spent.items()]
table([dict(zip(("stage", "tokens", "FLOPs", "seconds"), line, strict=True)) for line in ledger])

# %% [markdown]
# **Next**: notebook 05 lets a judge steer the search while the chain is being written.
