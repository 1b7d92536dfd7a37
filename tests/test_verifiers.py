"""Verifiers: each test names the mistake it pins."""

import copy
import math
import pkgutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForTokenClassification

from workbench import tasks, verifiers
from workbench.models import character_tokenizer, new_model
from workbench.policies import Sampling, Want
from workbench.policies.scripted import Scripted
from workbench.types import Node, Problem, ProblemError, Step, Trace, WorkbenchError
from workbench.verifiers import Verifier, likelihood, prm, score_all
from workbench.verifiers.generative import Generative
from workbench.verifiers.implicit import Implicit
from workbench.verifiers.likelihood import Likelihood
from workbench.verifiers.oracle import Oracle
from workbench.verifiers.prm import PRM, UNKNOWN


@pytest.fixture(scope="module")
def chains(policy, sums):
    """(problem, trace) with steps as sampled: finished, cut and too long ones."""
    grown = policy.extend([Want(p, Node(), 3, to_end=True) for p in sums], 0, Sampling(1.0, 12, 40))
    items = [(p, chain[-1].trace) for p, chains in zip(sums, grown, strict=True) for chain in chains]
    task = tasks.get("arithmetic")
    return items + [(p, task.demonstration(p)) for p in sums]  # these have text and no ids


@pytest.fixture(scope="module")
def head(micro):
    """A PRM with a head that has an opinion."""
    model = prm.from_policy(micro, extra_layers=1).eval()
    torch.manual_seed(0)
    torch.nn.init.normal_(model.score.weight)
    return model


@pytest.fixture(scope="module")
def backends(head, micro, tokenizer, sums):
    """One of every verifier file; the first test fails when a new file has none."""
    lines = {(): [("=Yes", 0.5), ("hm", 0.5)], ("hm",): [("=Yes", 0.2), ("=No", 0.8)]}
    return {
        "prm": PRM(head, tokenizer),
        "likelihood": Likelihood(micro, tokenizer),
        "implicit": Implicit(micro, tokenizer, new_model("micro", tokenizer), form="cumulative"),
        "generative": Generative(Scripted(lines)),
        "oracle": Oracle(sums),
    }


def test_every_verifier_is_held_to_the_laws(backends):
    assert {m.name for m in pkgutil.iter_modules(verifiers.__path__)} == set(backends)


@pytest.mark.parametrize("name", ["prm", "likelihood", "implicit", "generative", "oracle"])
def test_the_protocol(backends, chains, name):
    """Bugs: scores in another order than the chains; another number of scores than steps; the answer looked at."""
    verifier = backends[name]
    blind = [(p.blind(), trace) for p, trace in chains]
    scores = verifier.score(blind)
    assert isinstance(verifier, Verifier)
    assert [len(s) for s in scores] == [len(trace.steps) for _, trace in chains]
    assert all(0 <= x <= 1 for s in scores for x in s) and len({x for s in scores for x in s}) > 1
    assert scores[::-1] == [pytest.approx(s, abs=1e-5) for s in verifier.score(blind[::-1])]
    for item, score in zip(blind[::5], scores[::5], strict=True):
        assert verifier.score([item]) == [pytest.approx(score, abs=1e-5)], "a score depends on its batch"
    assert verifier.score([]) == [] and verifier.score([(blind[0][0], Trace(()))]) == [()]


def rows(chains, encoder, label=1.0):
    return [prm.judged(p, trace, [label] * len(trace.steps), encoder) for p, trace in chains]


def test_training_and_scoring_read_the_same_positions(head, tokenizer, encoder, chains):
    """Bug: labels on one position, scores from another. Score in training = score at inference, to the bit."""
    verifier = PRM(head, tokenizer, cache=0)
    for item, row in zip(chains, rows(chains, encoder), strict=True):
        with torch.no_grad():
            logits = prm.step_logits(head, prm.collate([row], tokenizer.pad_token_id))
        assert verifier.score([item]) == [tuple(logits.sigmoid()[0].tolist())]


def test_likelihood_in_training_is_likelihood_in_scoring(micro, tokenizer, encoder, chains):
    for item, row in zip(chains, rows(chains, encoder), strict=True):
        with torch.no_grad():
            worst = likelihood.step_logprobs(micro, prm.collate([row], tokenizer.pad_token_id))
        assert Likelihood(micro, tokenizer, cache=0).score([item]) == [tuple(worst.exp()[0].tolist())]


@pytest.mark.parametrize("cache", [1 << 24, 40_000, 1])
def test_reading_a_step_is_reading_the_chain(head, micro, tokenizer, chains, cache):
    """Bug: a verifier that keeps what it read scores otherwise: growing chains, shared beginnings, a small cache."""
    for kind, model in ((PRM, head), (Likelihood, micro)):
        whole, step = kind(model, tokenizer, cache=0), kind(model, tokenizer, cache=cache)
        want = whole.score(chains)
        for upto in (1, 2, 9):  # as a search asks: the first steps, then the next ones, then all
            grown = [(p, Trace(trace.steps[:upto], "cut")) for p, trace in chains]
            got = step.score(grown)
            assert got == [pytest.approx(scores[:upto], abs=1e-5) for scores in want]
        assert step.score(chains[::-1]) == [pytest.approx(s, abs=1e-5) for s in reversed(want)]


def test_a_step_is_read_once(head, micro, tokenizer, chains):
    """Bug: scoring a step reads the trace; what two chains share is read for each of them."""
    for kind, model, lag in ((PRM, head, 0), (Likelihood, micro, 1)):
        verifier, seen = kind(model, tokenizer), set()
        for upto in (1, 2, 9):
            grown = [(p, Trace(trace.steps[:upto], "cut")) for p, trace in chains]
            verifier.score(grown)
            fresh = 0
            for p, trace in grown:
                for depth in range(len(trace.steps) + 1):
                    ids = tuple(verifier.encoder.encode(p.prompt, trace.steps[:depth]).ids)
                    last = trace.steps[depth - 1] if depth else None
                    fresh += 0 if ids in seen else len(verifier.encoder.step(last)) if depth else len(ids) - lag
                    seen.add(ids)
            assert sum(verifier.read) == fresh
        verifier.score(chains)
        assert sum(verifier.read) == 0, "nothing was new"


def test_a_weight_that_changes_empties_the_cache(head, tokenizer, chains):
    """Bug: after an update the verifier goes on from what the old weights made."""
    model = copy.deepcopy(head)
    verifier = PRM(model, tokenizer)
    before = verifier.score(chains)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(-1)
    after = verifier.score(chains)
    assert after != before and after == [
        pytest.approx(s, abs=1e-5) for s in PRM(model, tokenizer, cache=0).score(chains)
    ]


def test_a_chain_longer_than_the_context_is_named(head, tokenizer, chains):
    """Bug: positions past what the model was trained on, silently."""
    long = (chains[0][0], Trace((Step("1+1=2" * 200),), "cut"))
    for cache in (0, 1 << 20):
        with pytest.raises(ProblemError, match=f"{chains[0][0].id}.*context of 512"):
            PRM(head, tokenizer, cache=cache).score([chains[1], long])


def test_the_head_reads_the_last_token_of_every_step(head, tokenizer, encoder, chains):
    """Against plain transformers: its token classifier's logits, looked up where a step's last token stands."""
    for p, trace in chains[::4]:
        ids, at = encoder.prompt(p.prompt), []
        for step in trace.steps:
            ids = ids + encoder.step(step)
            at.append(len(ids) - 1)
        with torch.no_grad():
            want = head(torch.tensor([ids])).logits[0, at, 0].sigmoid().tolist()
        assert PRM(head, tokenizer).score([(p, trace)]) == [pytest.approx(want, abs=1e-6)]


def test_likelihood_by_a_slow_specification(policy, micro, tokenizer, chains):
    """The least likely token of every step, from the log-probs that the policy itself wrote down."""
    sampled = [item for item in chains if all(step.logprobs for step in item[1].steps)]
    assert len(sampled) > 10
    for scores, (_, trace) in zip(Likelihood(micro, tokenizer).score(sampled), sampled, strict=True):
        assert scores == pytest.approx([math.exp(min(step.logprobs)) for step in trace.steps], rel=1e-3, abs=1e-6)


def test_a_score_depends_on_nothing_that_comes_later(backends, chains):
    """Bug: a search scores a half-grown chain, and the score changes when the chain grows."""
    whole = [(p, trace) for p, trace in chains if len(trace.steps) > 2]
    first = [(p, Trace(trace.steps[:2], "cut")) for p, trace in whole]
    for name in ("prm", "likelihood", "implicit", "generative"):
        longer = backends[name].score(whole)
        assert backends[name].score(first) == [pytest.approx(scores[:2], abs=1e-5) for scores in longer]


# --- labels -------------------------------------------------------------------------------------------------------


CHAIN = (
    Problem("p/1", "arithmetic", "2+3*4", "14"),
    Trace((Step("3*4=12"), Step("2+12=15"), Step("15+0=15"), Step("15", True))),
)


@pytest.mark.parametrize("labels", [[1, 0, 0], [1, 0, 0, 0, 0], []])
def test_a_wrong_number_of_labels_is_refused(encoder, labels):
    """Bug: mismatched label counts silently truncated."""
    with pytest.raises(WorkbenchError, match=f"p/1: {len(labels)} labels for 4 steps"):
        prm.judged(*CHAIN, labels, encoder)


@pytest.mark.parametrize("bad", [-100, -1, 2, float("nan")])
def test_a_label_outside_its_range_is_refused(encoder, bad):
    """Bug: -100 cast to True."""
    with pytest.raises(WorkbenchError, match="p/1: label .* outside"):
        prm.judged(*CHAIN, [1, bad, 0, 0], encoder)


def test_a_chain_without_steps_is_refused(encoder):
    """Bug: a row without a label, whose mean loss is 0 / 0."""
    for outcome in (False, True):
        with pytest.raises(WorkbenchError, match="without steps"):
            prm.judged(CHAIN[0], Trace(()), [], encoder, outcome)


def test_soft_labels_stay_soft(encoder):
    """Bugs: soft labels cut to 0 by int(); a hard problem's low value taken for a first error, which masks the rest."""
    assert prm.judged(*CHAIN, [0.875, 0.375, 0.125, 1.0], encoder).labels == [0.875, 0.375, 0.125, 1.0]
    assert prm.judged(*CHAIN, [0.875, 0.0, 0.125, 1.0], encoder).labels == [0.875, 0.0, UNKNOWN, UNKNOWN]


def test_an_outcome_model_gets_the_outcome_everywhere(encoder):
    """Bug: an ORM that is trained on step labels, or one whose steps after an error are masked."""
    assert prm.judged(*CHAIN, [1, 0, 0, 0], encoder, outcome=True).labels == [0.0] * 4
    assert prm.judged(*CHAIN, [0, 1, 1, 1], encoder, outcome=True).labels == [1.0] * 4


def test_bce_by_hand(head, tokenizer, encoder):
    """Bugs: padding counted into the mean; a label that meets its neighbour's logit."""
    short = prm.judged(CHAIN[0], Trace(CHAIN[1].steps[:1], "cut"), [0.25], encoder)
    batch = prm.collate([prm.judged(*CHAIN, [1, 0.5, 0, 0], encoder), short], tokenizer.pad_token_id)
    with torch.no_grad():
        a, b = PRM(head, tokenizer).score([CHAIN, (CHAIN[0], Trace(CHAIN[1].steps[:1], "cut"))])
        loss = prm.bce(head, batch).item()
    pairs = [(a[0], 1.0), (a[1], 0.5), (a[2], 0.0), (b[0], 0.25)]  # the closing answer comes after the first error
    assert loss == pytest.approx(sum(-y * math.log(p) - (1 - y) * math.log(1 - p) for p, y in pairs) / 4, rel=1e-4)


def test_nothing_is_learnt_after_the_first_error(micro, tokenizer, encoder):
    """Bug: steps after the first error trained as if they meant something. Their gradient is zero."""
    model = copy.deepcopy(prm.from_policy(micro))
    torch.nn.init.normal_(model.score.weight)
    kept = []
    hook = model.model.register_forward_hook(lambda *a: a[-1].last_hidden_state.retain_grad() or kept.append(a[-1]))
    row = prm.judged(*CHAIN, [1, 0, 0, 0], encoder)
    prm.bce(model, prm.collate([row], tokenizer.pad_token_id)).backward()
    hook.remove()
    moved = kept[0].last_hidden_state.grad[0].abs().sum(1).nonzero().flatten().tolist()
    assert moved == row.ends[:2]


def test_a_prm_learns_its_labels(micro, tokenizer, encoder):
    """Bug: the score is always the same, whatever is taught."""
    model = prm.from_policy(micro, extra_layers=1).train()
    chains = [(CHAIN[0], Trace((Step(first), Step("2+13=15"), Step("15", True)))) for first in ("7-7-7", "3*4=12")]
    batch = prm.collate([prm.judged(*c, [i] * 3, encoder) for i, c in enumerate(chains)], tokenizer.pad_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        prm.bce(model, batch).backward()
        optimizer.step()
    wrong, right = PRM(model, tokenizer).score(chains)
    assert wrong[0] < 0.1 and min(right) > 0.9


# --- the trunk ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [0, 1, 3])
def test_extra_layers_start_as_identities(micro, tokenizer, encoder, extra):
    """Bug: new layers at random wreck what the policy had learnt; a head that starts with an opinion."""
    model, ids = prm.from_policy(micro, extra).eval(), torch.tensor([encoder.encode("2+3*4", CHAIN[1].steps).ids])
    assert len(model.model.layers) == model.config.num_hidden_layers == len(micro.model.layers) + extra
    with torch.no_grad():
        assert torch.equal(model.model(ids).last_hidden_state, micro.model(ids).last_hidden_state)
    assert set(PRM(model, tokenizer).score([CHAIN])[0]) == {0.5}
    if extra:  # identities must not be dead: a gradient reaches the matrices that make them one
        torch.nn.init.normal_(model.score.weight)
        prm.step_logits(model, prm.collate([prm.judged(*CHAIN, [1] * 4, encoder)], 0)).sum().backward()
        assert model.model.layers[-1].self_attn.o_proj.weight.grad.abs().sum() > 0


def test_making_a_verifier_leaves_the_policy_and_the_random_state(micro):
    before, state = copy.deepcopy(micro.state_dict()), torch.random.get_rng_state()
    model = prm.from_policy(micro, 1)
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    assert all(torch.equal(v, before[k]) for k, v in micro.state_dict().items())
    assert micro.config.num_hidden_layers == 2 and torch.equal(state, torch.random.get_rng_state())


def test_a_verifier_is_an_ordinary_checkpoint(head, micro, tokenizer, chains, tmp_path):
    """Bugs: a head that is lost on saving and comes back at random; a checkpoint only this package can read."""
    for name, model in (("head", head), ("lm", micro)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    plain = AutoModelForTokenClassification.from_pretrained(tmp_path / "head")
    assert plain.config.num_labels == 1 and torch.equal(plain.score.weight, head.score.weight)
    loaded = PRM.load(tmp_path / "head", aggregate="last")
    assert loaded.score(chains) == PRM(head, tokenizer).score(chains) and loaded.aggregate == "last"
    assert Likelihood.load(tmp_path / "lm").score(chains) == Likelihood(micro, tokenizer).score(chains)


def test_what_a_verifier_costs(backends, micro):
    """Bug: a verifier whose compute nobody counts, or counts with a head it does not use."""
    thin, lm = PRM(prm.from_policy(micro), backends["prm"].encoder.tokenizer), backends["likelihood"]
    assert 0 < thin.flops(0, 50) < backends["prm"].flops(0, 50), "deeper is dearer"
    head = 2 * 50 * micro.config.hidden_size * micro.config.vocab_size
    assert lm.flops(0, 50) - thin.flops(0, 50) == pytest.approx(head)
    assert lm.flops(0, 50, head=False) == thin.flops(0, 50)
    assert thin.flops(0, 20) + thin.flops(20, 30) == pytest.approx(thin.flops(0, 50)), "a step costs the step"
    assert backends["oracle"].flops(0, 50) == 0


# --- the oracle ---------------------------------------------------------------------------------------------------


def test_the_oracle_needs_the_problems(sums):
    """Bug: an oracle that reads the gold answer from what a search is handed."""
    task = tasks.get("arithmetic")
    stranger = Problem("p/9", "arithmetic", "1+1", "2")
    with pytest.raises(WorkbenchError, match="p/9"):
        Oracle(sums).score([(stranger, task.demonstration(stranger))])
    assert Oracle([stranger]).score([(stranger.blind(), task.demonstration(stranger))]) == [(1.0, 1.0)]


def test_the_oracle_gives_nothing_for_a_chain_that_ran_out(sums):
    """Bug: "length" read as finished."""
    steps = tasks.get("arithmetic").demonstration(sums[0]).steps
    assert Oracle(sums).score([(sums[0], Trace(steps, "length"))]) == [(0.0,) * len(steps)]
    assert Oracle(sums).score([(sums[0], Trace(steps[:1], "cut"))]) == [(1.0,)], "an unfinished right step is right"


# --- many chains --------------------------------------------------------------------------------------------------


def test_all_are_scored_but_for_problems_that_cannot_be(backends, sums):
    """Bugs: one long chain ends the run; its place is given to the next; an error about something else is for ever."""
    verifier, task = backends["prm"], tasks.get("arithmetic")
    items = [(p.blind(), task.demonstration(p)) for p in sums]
    long = replace(sums[0], id="long").blind(), Trace((Step("1+1=2" * 200), Step("2", True)))
    mixed = [*items[:3], long, *items[3:]]
    for batch in (2, 64):
        found = score_all(verifier, mixed, batch=batch)
        assert found[3] == (None, None)
        wanted = [pytest.approx(row, abs=1e-5) for row in verifier.score(items)]
        assert found[:3] + found[4:] == wanted
    assert score_all(verifier, [long]) == [(None, None)] and score_all(verifier, []) == []

    class Wrong:
        def __init__(self, rows):
            self.rows = rows

        def score(self, items):
            return self.rows

    for rows, said in (  # Bug: a traceback, or a row that is handed on
        (None, "Wrong gave None and no rows of scores for 1 chains"),
        ([], "Wrong gave 0 rows of scores for 1 chains"),
        ([None], "Wrong gave None for 2 steps"),
        ([(0.5,)], r"Wrong gave \(0.5,\) for 2 steps"),
        ([(0.5, float("nan"))], "Wrong gave .*nan.* for 2 steps"),
    ):
        with pytest.raises(WorkbenchError, match=said):
            score_all(Wrong(rows), [long])

    class Lost:
        def score(self, items):
            raise ProblemError({"stranger": "not among those asked about"})

    with pytest.raises(ProblemError, match="stranger"):
        score_all(Lost(), items)


def test_models_that_are_alike_share_their_working_memory():
    """Bugs: each of four judges holds 400 MB between its calls; one finds another's keys where its own should be."""
    tokenizer = character_tokenizer()
    models = [new_model("micro", tokenizer, seed) for seed in range(3)]
    problems = [Problem(f"p/{i}", "arithmetic", f"{i}+{i}", str(2 * i)) for i in range(70)]
    items = [(p, Trace((Step(f"{p.prompt}={p.answer}"), Step(p.answer, True)))) for p in problems]
    alone = [Likelihood(model, tokenizer).score(items) for model in models]
    judges = [Likelihood(model, tokenizer) for model in models]
    assert len({id(judge.reader.rows.work) for judge in judges}) == 1
    assert Likelihood(new_model("nano", tokenizer), tokenizer).reader.rows.work is not judges[0].reader.rows.work
    parts = [[judge.score(items[first : first + 7]) for judge in judges] for first in range(0, 70, 7)]
    for which, scores in enumerate(alone):
        for got, want in zip([row for part in parts for row in part[which]], scores, strict=True):
            assert got == pytest.approx(want, abs=1e-6)
    assert alone[0] != alone[1]
    sick = Likelihood(new_model("micro", tokenizer), tokenizer)
    for weight in sick.model.parameters():
        weight.data.fill_(float("nan"))
    assert sick.reader.rows.work is judges[0].reader.rows.work
    long = [(problems[0], Trace((Step("0+0=0" * 8), Step("0", True))))]
    assert all(math.isnan(x) for row in sick.score(long + items) for x in row)
    again = Likelihood(models[0], tokenizer).score(items)
    assert again == [pytest.approx(want, abs=1e-6) for want in alone[0]], "NaN is not handed on"
    low = Likelihood(new_model("micro", tokenizer).bfloat16(), tokenizer)
    assert low.reader.rows.work is not judges[0].reader.rows.work
    assert low.score(items[:3]) and judges[0].score(items[:3]) == [pytest.approx(w, abs=1e-6) for w in alone[0][:3]]
