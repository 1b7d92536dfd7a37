"""The implicit PRM: each test names the mistake it pins."""

import copy
import json
import math

import pytest
import torch
from searching import go, knobs

from workbench import fit, tasks
from workbench.models import Price, new_model
from workbench.policies import Sampling, Want
from workbench.types import Node, Problem, ProblemError, Step, Trace, WorkbenchError
from workbench.verifiers import Verifier, implicit, prm
from workbench.verifiers.implicit import FORMS, Implicit, implicit_loss, step_logratios

SAMPLING = Sampling(1.0, 12, 40)
CHAIN = (
    Problem("p/1", "arithmetic", "2+3*4", "14"),
    Trace((Step("3*4=12"), Step("2+12=15"), Step("15", True))),
)


@pytest.fixture(scope="module")
def chains(policy, sums):
    """(problem, trace) with steps as sampled, and demonstrations, which have text and no ids."""
    grown = policy.extend([Want(p, Node(), 3, to_end=True) for p in sums], 0, SAMPLING)
    items = [(p.blind(), chain[-1].trace) for p, chains in zip(sums, grown, strict=True) for chain in chains]
    return items + [(p.blind(), tasks.get("arithmetic").demonstration(p)) for p in sums]


@pytest.fixture(scope="module")
def other(micro):
    """A model near `micro` and not it."""
    model = copy.deepcopy(micro)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * weight.std() * torch.randn(weight.shape, generator=g) if weight.ndim == 2 else 0)
    return model.eval()


@pytest.fixture
def adapted(micro):
    """A copy of `micro` with two LoRA adapters, as transformers adds them; the second is on."""
    peft = pytest.importorskip("peft")
    model = copy.deepcopy(micro)
    torch.manual_seed(0)
    for name in ("one", "two"):
        more = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        model.add_adapter(more, adapter_name=name)
    return model.eval()


def rows(chains, encoder, outcomes=(1.0, 0.0)):
    labels = [[outcomes[i % len(outcomes)]] * len(trace.steps) for i, (_, trace) in enumerate(chains)]
    return [prm.judged(p, trace, x, encoder, outcome=True) for (p, trace), x in zip(chains, labels, strict=True)]


@torch.no_grad()
def by_hand(model, encoder, problem, trace):
    """log-prob of every step by one plain forward pass over the whole text, token after token."""
    ids, out = encoder.prompt(problem.prompt), []
    where = []
    for step in trace.steps:
        new = encoder.step(step)
        where.append(range(len(ids), len(ids) + len(new)))
        ids = ids + new
    logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    for places in where:
        out.append(math.fsum(logprobs[t - 1, ids[t]].item() for t in places))
    return out


class Fixed(torch.nn.Module):
    """A model whose next-token probabilities are known: they depend on nothing."""

    def __init__(self, chances: dict[int, float], size: int):
        super().__init__()
        rest = (1 - sum(chances.values())) / (size - len(chances))
        logits = torch.tensor([math.log(chances.get(i, rest)) for i in range(size)])
        self.weight = torch.nn.Parameter(logits[:, None])
        self.config = type("Config", (), {"vocab_size": size, "max_position_embeddings": 512})()
        self.device = torch.device("cpu")

    @property
    def base_model(self):
        hidden = lambda input_ids, attention_mask: torch.ones(*input_ids.shape, 1) * 1.0  # noqa: E731
        return lambda **inputs: type("Out", (), {"last_hidden_state": hidden(**inputs)})

    def get_output_embeddings(self):
        return lambda hidden: hidden @ self.weight.T


def test_log_ratios_with_known_probabilities(tokenizer, encoder):
    """By hand: two models that give "1", "2" and the break known chances, whatever came before."""
    one, two, end = (encoder.text(x)[0] for x in ("1", "2", "\n"))
    mine, theirs = Fixed({one: 0.5, two: 0.1, end: 0.2}, len(tokenizer)), Fixed({one: 0.25, two: 0.2, end: 0.2}, 300)
    row = prm.judged(CHAIN[0], Trace((Step("112"), Step("2")), "cut"), [1, 1], encoder)
    batch = prm.collate([row], tokenizer.pad_token_id)
    ratios = step_logratios(mine, theirs, batch)
    want = [math.log(2 * 2 * 0.5), math.log(0.5)]  # 1, 1, 2 and the break; 2 and the break
    assert ratios[0].tolist() == pytest.approx(want, abs=1e-5)
    assert implicit_loss(mine, theirs, batch, beta=2.0).item() == pytest.approx(-math.log(0.5), abs=1e-5)  # 2 * .5 = 1
    batch["labels"][:] = 0.25
    loss = implicit_loss(mine, theirs, batch | {"steps": torch.tensor([1])}, beta=2.0).item()  # sigmoid(log 4) = .8
    assert loss == pytest.approx(-0.25 * math.log(0.8) - 0.75 * math.log(0.2), abs=1e-5)


@pytest.mark.parametrize("cache", [0, 1 << 24, 40_000, 1])
def test_log_ratios_by_a_slow_specification(micro, other, tokenizer, encoder, chains, cache):
    """Bugs: one token off by the causal shift; a break that counts for the next step; the prompt counted in."""
    verifier = Implicit(micro, tokenizer, other, cache=cache)
    for (p, trace), found in zip(chains, verifier.log_ratio(chains), strict=True):
        mine, theirs = by_hand(micro, encoder, p, trace), by_hand(other, encoder, p, trace)
        assert found == pytest.approx([a - b for a, b in zip(mine, theirs, strict=True)], abs=1e-3)
    assert max(abs(x) for row in verifier.log_ratio(chains) for x in row) > 0.1, "the two models differ"


def test_steps_add_up_to_the_chain(micro, other, tokenizer, encoder, chains):
    """Bug: tokens between steps that no step counts, or two do. Against transformers' own loss on the response."""
    for (p, trace), row in zip(chains, Implicit(micro, tokenizer, other).log_ratio(chains), strict=True):
        ids = torch.tensor([encoder.encode(p.prompt, trace.steps).ids])
        labels = ids.clone()
        labels[:, : len(encoder.prompt(p.prompt))] = -100
        with torch.no_grad():
            mine, theirs = (m(input_ids=ids, labels=labels).loss.item() for m in (micro, other))
        assert sum(row) == pytest.approx((theirs - mine) * (labels != -100).sum().item(), abs=2e-3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cache", [0, 1 << 20])
def test_a_model_that_is_its_reference_knows_nothing(micro, tokenizer, chains, form, cache):
    for reference in (micro, copy.deepcopy(micro)):
        scores = Implicit(micro, tokenizer, reference, form=form, cache=cache).score(chains)
        assert {x for row in scores for x in row} == {0.5}


def test_scores_are_the_stated_maps(micro, other, tokenizer, chains):
    """Bugs: a map that turns the order round; a sum that leaves out the step itself; beta used twice."""
    for beta in (0.05, 1.0):
        step, total = (Implicit(micro, tokenizer, other, beta, form) for form in FORMS)
        assert (step.aggregate, total.aggregate) == ("min", "last")
        for row, a, b in zip(step.log_ratio(chains), step.score(chains), total.score(chains), strict=True):
            assert a == pytest.approx([1 / (1 + math.exp(-beta * x)) for x in row], abs=1e-5)
            sums = [sum(row[: n + 1]) for n in range(len(row))]
            assert b == pytest.approx([1 / (1 + math.exp(-beta * x)) for x in sums], abs=1e-5)
    assert Implicit(micro, tokenizer, other, aggregate="prod").aggregate == "prod"


def test_training_is_scoring_to_the_bit(micro, other, tokenizer, encoder, chains):
    """Bug: labels on one position, scores from another. With cache=0 both are one path."""
    step, total = (Implicit(micro, tokenizer, other, 0.5, form, cache=0) for form in FORMS)
    for item, row in zip(chains, rows(chains, encoder, (1.0,)), strict=True):
        batch = prm.collate([row], tokenizer.pad_token_id)
        with torch.no_grad():
            ratios = step_logratios(micro, other, batch)
            loss = implicit_loss(micro, other, batch, 0.5)
        assert step.log_ratio([item]) == [tuple(ratios[0].tolist())]
        assert step.score([item]) == [tuple((0.5 * ratios[0]).sigmoid().tolist())]
        [scores] = total.score([item])
        wanted = torch.nn.functional.binary_cross_entropy(torch.tensor(scores[-1]), torch.tensor(row.labels[-1]))
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_loss_on_a_padded_batch_by_hand(micro, other, tokenizer, encoder, chains):
    """Bugs: padding in a sum; one chain's outcome on another; the step's ratio in place of the chain's."""
    data = rows(chains, encoder, (1.0, 0.0, 0.25))
    assert len({len(row.ids) for row in data}) > 3 and len({len(row.ends) for row in data}) > 1
    with torch.no_grad():
        loss = implicit_loss(micro, other, prm.collate(data, tokenizer.pad_token_id), 0.3).item()
    want = []
    for row, ratio in zip(data, Implicit(micro, tokenizer, other).log_ratio(chains), strict=True):
        chance, y = 1 / (1 + math.exp(-0.3 * sum(ratio))), row.labels[-1]
        want.append(-y * math.log(chance) - (1 - y) * math.log(1 - chance))
    assert loss == pytest.approx(sum(want) / len(want), rel=1e-3)


def test_the_gradient_is_the_models_alone(micro, tokenizer, encoder, chains):
    """Bugs: a reference that is trained along; the gradient of steps in place of chains. Where both models are one, it
    is that of -(outcome - .5) beta log pi(chain), here by transformers' own loss."""
    model, plain, reference = (copy.deepcopy(micro) for _ in range(3))
    items, outcomes = chains[:6], [1.0, 0.0] * 3
    batch = prm.collate(rows(items, encoder), tokenizer.pad_token_id)
    loss = implicit_loss(model, reference, batch, beta=0.3)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    loss.backward()
    for (p, trace), y in zip(items, outcomes, strict=True):
        ids = torch.tensor([encoder.encode(p.prompt, trace.steps).ids])
        labels = ids.clone()
        labels[:, : len(encoder.prompt(p.prompt))] = -100
        chain = -plain(input_ids=ids, labels=labels).loss * (labels != -100).sum()
        (-(y - 0.5) * 0.3 * chain / len(items)).backward()
    assert all(weight.grad is None for weight in reference.parameters())
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-5)


def test_the_reference_has_no_dropout(micro, tokenizer, encoder, chains):
    """Bug: a reference left in training mode, whose noise is trained on; or one that is put into another mode."""
    reference = copy.deepcopy(micro).train()
    for layer in reference.model.layers:
        layer.self_attn.attention_dropout = 0.5
    batch = prm.collate(rows(chains[:6], encoder), tokenizer.pad_token_id)
    assert implicit_loss(micro, reference, batch).item() == pytest.approx(math.log(2), abs=1e-6)
    assert reference.training


@pytest.mark.parametrize("bad", [-1.0, 1.5, float("nan")])
def test_a_chain_without_an_outcome_is_refused(micro, other, tokenizer, encoder, bad):
    """Bug: UNKNOWN, which is -1, trained as a target."""
    batch = prm.collate(rows([CHAIN], encoder), tokenizer.pad_token_id)
    batch["labels"][0, 2] = bad
    with pytest.raises(WorkbenchError, match="every chain needs one in 0-1"):
        implicit_loss(micro, other, batch)


def test_packed_rows_are_refused(micro, other, tokenizer, encoder):
    """Bug: several chains in one row summed as if they were one."""
    batch = prm.collate(rows([CHAIN], encoder), tokenizer.pad_token_id)
    with pytest.raises(WorkbenchError, match="one chain a row"):
        implicit_loss(micro, other, {k: v for k, v in batch.items() if k != "steps"})


CHAINS = [(CHAIN[0], Trace((Step(first), Step("2+13=15"), Step("15", True)))) for first in ("7-7-7", "3*4=12")]


def taught(model, reference, tokenizer, encoder, folder, **more):
    data = [prm.judged(*chain, [i] * 3, encoder, outcome=True) for i, chain in enumerate(CHAINS)]
    seen = []
    fit.fit(
        model,
        data * 60,
        lambda batch: prm.collate(batch, tokenizer.pad_token_id),
        lambda model, batch: implicit_loss(model, reference, batch, beta=0.5),
        fit.Fit(steps=60, batch=2, warmup=5, check_every=10, **more),
        folder,
        log=lambda row: seen.append(row["loss"]),
        progress=False,
    )
    return seen


def test_outcomes_teach_steps(micro, tokenizer, encoder, tmp_path):
    """Bug: the score is always the same. The two chains differ in their first step, which outcomes alone tell apart.

    Not held: that this step is the worst one. Later steps, equal in text, stand behind it and share the blame.
    """
    model = copy.deepcopy(micro)
    seen = taught(model, micro, tokenizer, encoder, tmp_path, lr=3e-3)
    assert seen[-1] < 0.15 < seen[0]
    wrong, right = Implicit(model, tokenizer, micro, 0.5, "cumulative").score(CHAINS)
    assert wrong[-1] < 0.2 and right[-1] > 0.8
    wrong, right = Implicit(model, tokenizer, micro, 0.5).score(CHAINS)
    assert wrong[0] < 0.2 and right[0] > 0.8


# --- one model, adapters ------------------------------------------------------------------------------------------


def state(model):
    layers = [m for m in model.modules() if type(m).__module__.startswith("peft.tuners.lora")]
    layers = [m for m in layers if hasattr(m, "active_adapters")]
    return [(m.active_adapters, m.disable_adapters) for m in layers], [w.requires_grad for w in model.parameters()]


@pytest.mark.parametrize("cache", [0, 1 << 20])
def test_the_base_is_the_reference(adapted, micro, tokenizer, encoder, chains, cache):
    """Bugs: the adapter in both, or in neither; what one has read served to the other; an adapter left off."""
    before = state(adapted)
    verifiers = {name: Implicit(adapted, tokenizer, adapter=name, cache=cache) for name in ("one", "two")}
    found = {name: verifier.log_ratio(chains) for name, verifier in verifiers.items()}
    assert state(adapted) == before, "the model is left as it was found"
    for name in ("one", "two"):
        adapted.set_adapter(name)
        for (p, trace), row in zip(chains, found[name], strict=True):
            mine, theirs = by_hand(adapted, encoder, p, trace), by_hand(micro, encoder, p, trace)
            assert row == pytest.approx([a - b for a, b in zip(mine, theirs, strict=True)], abs=1e-3)
    assert found["one"] != found["two"]
    assert Implicit(adapted, tokenizer, cache=cache).log_ratio(chains) == found["two"], "the one that is on"
    assert {name: v.log_ratio(chains) for name, v in verifiers.items()} == found


def test_a_model_is_left_as_it_was_found(adapted, tokenizer, chains):
    """Bugs: adapters that were off are on afterwards; weights that were frozen ask for gradients; so after an error."""
    want = Implicit(adapted, tokenizer, adapter="one").log_ratio(chains)
    for weight in adapted.parameters():
        weight.requires_grad_(False)
    adapted.disable_adapters()
    before = state(adapted)
    assert all(off for _, off in before[0]) and not any(before[1])
    verifier = Implicit(adapted, tokenizer, adapter="one")
    assert verifier.log_ratio(chains) == want and state(adapted) == before
    with pytest.raises(ProblemError):
        verifier.score([(chains[0][0], Trace((Step("1+1=2" * 200),), "cut"))])
    assert state(adapted) == before


def test_an_adapter_is_the_reference(adapted, tokenizer, chains):
    """QLoRA's flow: a taught adapter is the reference of the one that went on from it."""
    one, two = (Implicit(adapted, tokenizer, adapter=name).log_ratio(chains) for name in ("one", "two"))
    between = Implicit(adapted, tokenizer, "one", adapter="two").log_ratio(chains)
    for a, b, c in zip(one, two, between, strict=True):
        assert c == pytest.approx([y - x for x, y in zip(a, b, strict=True)], abs=1e-4)


def test_a_peft_wrapper(micro, tokenizer, encoder, chains, tmp_path):
    """A PeftModel, fresh: as likely as its base, so .5; taught by `fit` with its own base as the reference."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"])
    model = peft.get_peft_model(copy.deepcopy(micro), config)
    fresh = Implicit(model, tokenizer)
    assert {x for row in fresh.score(chains) for x in row} == {0.5}
    trainable = [w.requires_grad for w in model.parameters()]
    assert any(trainable) and not all(trainable)
    base = {k: v.clone() for k, v in model.state_dict().items() if "lora" not in k}
    seen = taught(model, None, tokenizer, encoder, tmp_path, lr=1e-2)
    assert seen[-1] < min(0.3, seen[0] / 2) and [w.requires_grad for w in model.parameters()] == trainable
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in base.items()), "only the adapter learns"
    wrong, right = Implicit(model, tokenizer, beta=0.5, form="cumulative").score(CHAINS)
    assert wrong[-1] < 0.4 and right[-1] > 0.6
    assert fresh.score(chains) != [(0.5,) * len(t.steps) for _, t in chains], "training empties what was read"


def test_adapters_that_cannot_be_switched(adapted, micro, tokenizer):
    with pytest.raises(WorkbenchError, match="no adapter to switch off"):
        Implicit(micro, tokenizer)
    with pytest.raises(WorkbenchError, match="no adapter 'three': it has one, two"):
        Implicit(adapted, tokenizer, adapter="three")
    with pytest.raises(WorkbenchError, match="no adapter 'three': it has one, two"):
        Implicit(adapted, tokenizer, "three", adapter="one")
    adapted.set_adapter(["one", "two"])
    with pytest.raises(WorkbenchError, match="one, two are on: say which one"):
        Implicit(adapted, tokenizer)
    for layer in adapted.modules():
        if hasattr(layer, "merged"):
            layer.merge(adapter_names=["one"])
    with pytest.raises(WorkbenchError, match="unmerge it first"):
        Implicit(adapted, tokenizer, adapter="one").score([CHAIN])


# --- a verifier among verifiers -----------------------------------------------------------------------------------


def test_the_protocol(micro, other, tokenizer, chains):
    """Bugs: scores in another order than the chains; a score that depends on its batch."""
    verifier = Implicit(micro, tokenizer, other)
    scores = verifier.score(chains)
    assert isinstance(verifier, Verifier)
    assert [len(s) for s in scores] == [len(trace.steps) for _, trace in chains]
    assert all(0 <= x <= 1 for s in scores for x in s) and len({x for s in scores for x in s}) > 1
    assert scores[::-1] == [pytest.approx(s, abs=1e-5) for s in verifier.score(chains[::-1])]
    for item, score in zip(chains[::5], scores[::5], strict=True):
        assert Implicit(micro, tokenizer, other).score([item]) == [pytest.approx(score, abs=1e-5)]
    assert verifier.score([]) == [] and verifier.score([(chains[0][0], Trace(()))]) == [()]
    assert Implicit(micro, tokenizer, other, cache=0).score([(chains[0][0], Trace(()))]) == [()]


@pytest.mark.parametrize("cache", [1 << 24, 40_000, 1])
@pytest.mark.parametrize("form", FORMS)
def test_reading_a_step_is_reading_the_chain(micro, other, tokenizer, chains, cache, form):
    """Bug: a verifier that keeps what it read scores otherwise; a score that depends on what comes later."""
    whole, step = (Implicit(micro, tokenizer, other, form=form, cache=size) for size in (0, cache))
    want = whole.score(chains)
    for upto in (1, 2, 9):
        grown = [(p, Trace(trace.steps[:upto], "cut")) for p, trace in chains]
        assert step.score(grown) == [pytest.approx(scores[:upto], abs=1e-5) for scores in want]


def test_a_step_is_read_once_by_each_model(micro, other, tokenizer, chains):
    """Bug: scoring a step reads the trace. Counted where the tokens go in."""
    verifier, fed = Implicit(micro, tokenizer, other), []
    for side in verifier.sides:
        inner = side.reader.rows.prefill
        side.reader.rows.prefill = lambda first, texts, starts, inner=inner: (
            fed.append(sum(map(len, texts))) or inner(first, texts, starts)
        )
    seen = set()
    for upto in (1, 2, 9):
        fed.clear()
        verifier.score([(p, Trace(trace.steps[:upto], "cut")) for p, trace in chains])
        fresh = 0
        for p, trace in chains:
            for depth in range(min(upto, len(trace.steps)) + 1):
                ids = tuple(verifier.encoder.encode(p.prompt, trace.steps[:depth]).ids)
                new = len(verifier.encoder.step(trace.steps[depth - 1])) if depth else len(ids) - 1
                fresh += 0 if ids in seen else new
                seen.add(ids)
        assert sum(verifier.read) == fresh and sum(fed) == 2 * fresh
    verifier.score(chains)
    assert sum(verifier.read) == 0


def test_a_chain_too_long_for_either_model_is_named(micro, tokenizer, chains):
    """Bug: only the trained model's context is looked at."""
    small = new_model("micro", tokenizer)
    small.config.max_position_embeddings = 64
    long = (chains[0][0], Trace((Step("1+1=2" * 20),), "cut"))
    for models in ((micro, small), (small, micro)):
        for cache in (0, 1 << 20):
            with pytest.raises(ProblemError, match=f"{chains[0][0].id}.*context of 64"):
                Implicit(models[0], tokenizer, models[1], cache=cache).score([long])


def test_both_models_are_billed(micro, tokenizer):
    """Bug: a reference whose compute nobody counts."""
    big = new_model("nano", tokenizer)
    verifier = Implicit(micro, tokenizer, big)
    assert verifier.flops(7, 50) == Price(micro.config)(7, 50) + Price(big.config)(7, 50)
    assert verifier.flops(0, 20, head=False) == sum(Price(m.config)(0, 20, head=False) for m in (micro, big))


def test_what_cannot_be(micro, other, tokenizer):
    with pytest.raises(WorkbenchError, match="unknown form 'sum': one of step, cumulative"):
        Implicit(micro, tokenizer, other, form="sum")
    for beta in (0, -1, math.inf, math.nan):
        with pytest.raises(WorkbenchError, match="beta="):
            Implicit(micro, tokenizer, other, beta)


def test_from_folders(micro, other, tokenizer, chains, tmp_path):
    for name, model in (("mine", micro), ("theirs", other)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    loaded = Implicit.load(tmp_path / "mine", tmp_path / "theirs", beta=1.0)
    assert loaded.score(chains) == Implicit(micro, tokenizer, other, 1.0).score(chains)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["best_of_n", "beam"])
def test_it_can_be_searched_with(policy, micro, tokenizer, sums, name, form):
    """With models at random, and what was read in steps is what reading the tree's chains whole gives."""
    mine, theirs = new_model("micro", tokenizer, seed=3), new_model("micro", tokenizer, seed=4)
    verifier = Implicit(mine, tokenizer, theirs, 1.0, form)
    more = knobs(name, n=4, width=2, aggregate=verifier.aggregate)
    results = go(name, sums, policy, verifier, sampling=SAMPLING, **more)
    assert all(r.stop == "done" and r.cost.verifier_flops > 0 and r.cost.reread == 0 for r in results)
    assert sum(r.answer is not None for r in results) >= 4
    whole = Implicit(mine, tokenizer, theirs, 1.0, form, cache=0)
    for r in results:
        for leaf in r.leaves:
            [want] = whole.score([(r.problem.blind(), leaf.trace)])
            known = [(a, b) for a, b in zip(leaf.trace.scores, want, strict=True) if a is not None]
            assert known and all(a == pytest.approx(b, abs=2e-5) for a, b in known)


def test_slices_of_logits(micro, other, tokenizer, chains, monkeypatch):
    """Bug: a large vocabulary needs all logits at once; or slices that are put together wrongly."""
    want = Implicit(micro, tokenizer, other, cache=0).log_ratio(chains)
    monkeypatch.setattr(implicit, "LOGITS", 7 * micro.config.vocab_size)
    for cache in (0, 1 << 20):
        found = Implicit(micro, tokenizer, other, cache=cache).log_ratio(chains)
        assert found == [pytest.approx(row, abs=1e-4) for row in want]


def test_the_command_line_judges_an_implicit_one(micro, tokenizer, tmp_path, capsys):
    """Bugs: the reference left out, or taken for the model; the baseline is not the reference's; what makes a score of
    a log-ratio cannot be said; of a step's own reward, which is no probability, the calibration is told."""
    from workbench import judging, stepdata
    from workbench.__main__ import main

    other = new_model("micro", tokenizer, seed=3).eval()
    micro.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    other.save_pretrained(tmp_path / "before")
    tokenizer.save_pretrained(tmp_path / "before")
    rows = []
    for i, problem in enumerate(tasks.get("arithmetic").load("train", 16, seed=9, level=2)):
        steps = [step.text for step in tasks.get("arithmetic").demonstration(problem).steps]
        rows.append({"problem": problem.prompt, "steps": steps, "label": i % 3 - 1, "final_answer_correct": False})
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["prm", "evaluate", str(tmp_path / "model"), str(data), "--out", str(tmp_path / "out")]
    command += ["--as", "implicit", "--reference", str(tmp_path / "before")]
    assert main([*command, "--form", "cumulative", "--beta", ".2"]) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    kept = [c for c in stepdata.Rows(data) if tasks.digest("tuning", tasks.mark(c.problem)) % 4]
    scores = Implicit(micro, tokenizer, other, 0.2, "cumulative").score([(c.problem.blind(), c.trace) for c in kept])
    pairs = [(s, x) for row, c in zip(scores, kept, strict=True) for s, x in zip(row, c.labels, strict=True)]
    known = [pair for pair in pairs if None not in pair]
    assert found["verifier"]["steps"] == len(known) > 10
    assert found["verifier"]["brier"]["value"] == pytest.approx(
        sum((s - x) ** 2 for s, x in known) / len(known), abs=1e-4
    )
    assert found["baselines"][2]["name"] == judging.POLICY
    assert found["baselines"][2]["auc"] and "policy log-prob" in said
    assert main(command) == 0 and "no chance of being right" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["verifier"]["auc"] and found["verifier"]["brier"] is found["verifier"]["ece"] is None
    assert not found["bins"] and not list((tmp_path / "out").glob("reliability.*"))
