"""The flywheel: each test names the mistake it pins."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from workbench import flywheel, labels, search, tasks
from workbench.adapters import four_bit, one_base, save_adapter
from workbench.fit import Fit
from workbench.flywheel import Chain, Flywheel, distinct, judged, read_chains, sift, train, varied
from workbench.models import load_model
from workbench.policies.local import LocalPolicy
from workbench.runs import Run
from workbench.types import Cost, Node, Problem, ProblemError, Step, Trace, WorkbenchError

FIT = Fit(steps=3, batch=8, lr=5e-3, warmup=1)
CONFIG = Flywheel(rounds=2, problems=12, levels=(1,), step_tokens=12, chain_tokens=30, cap=2, fit=FIT, checks=2)


class Killed(BaseException):
    pass


class Judge:
    """Scores by what a chain's first step says, `default` where it is not told; it must never see a gold answer."""

    aggregate = "min"

    def __init__(self, default=0.9, **told):
        self.default, self.told, self.judged = default, told, 0

    def flops(self, prefix, new, head=True):
        return 2.0 * new

    def score(self, items):
        assert all(p.answer is None for p, _ in items), "a verifier saw the gold answer"
        self.judged += len(items)
        return [self.told.get(trace.steps[0].text, (self.default,) * len(trace.steps)) for _, trace in items]


@pytest.fixture(autouse=True, scope="module")
def kind():
    """The tiny model is never right, so a kinder grader: an answer is right if its last digit is below 5."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flywheel, "right_answer", lambda p, trace: (trace.answer or "9")[-1:] in list("01234"))
        yield


@pytest.fixture(scope="module")
def held():
    return tasks.get("arithmetic").load("valid", 5, level=1)


@pytest.fixture
def base(micro, tokenizer):
    return LocalPolicy(copy.deepcopy(micro), tokenizer)


def go(base, folder, config=CONFIG, **more):
    return train(base, "arithmetic", config, Run.open(folder, {"config": config}), progress=False, **more)


def timeless(value):
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not k.endswith("seconds")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def on_disk(folder):
    """All that a run has left, without what a clock measured."""
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    out = {name: p.read_bytes() for name, p in files.items() if name not in ("run.json", "history.jsonl")}
    return out | {"history": [timeless(json.loads(line)) for line in files["history.jsonl"].read_text().splitlines()]}


@pytest.fixture(scope="module")
def straight(micro, tokenizer, held, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flywheel") / "straight"
    history = go(LocalPolicy(copy.deepcopy(micro), tokenizer), folder, held_out=held)
    return SimpleNamespace(folder=folder, history=history, run=Run.existing(folder), files=on_disk(folder))


# --- filters ------------------------------------------------------------------------------------------------------


def chain(lines, right=True, stop="answer", name="p/1", source="sampled", scores=None):
    steps = [Step(text, ids=(1,)) for text in lines[:-1]] + [Step(lines[-1], stop == "answer", (1,))]
    steps = steps if scores is None else [replace(s, score=x) for s, x in zip(steps, scores, strict=True)]
    return Chain(Problem(name, "arithmetic", "1+1+1", "3"), Trace(tuple(steps), stop), source, right)


A, B, C = (chain([*lines, "3"]) for lines in (["1+1=2", "2+1=3"], ["2+1=3", "1+1=2"], ["1+2=3"]))
WRONG, CUT, OPEN = chain(["1+1=4", "4"], False), chain(["1+1", "3"], False, "cut"), chain(["1+1=2"], False, "length")
HELPED, LIED = chain(["so", "3"], source="hinted"), chain(["so", "7"], False, source="hinted")
ALL = [A, WRONG, CUT, OPEN, HELPED, LIED]


@pytest.mark.parametrize(
    "name, kept, dropped",
    [
        ("none", [A, WRONG, HELPED], {"unfinished": 2, "wrong": 1}),
        ("answer", [A, HELPED], {"unfinished": 2, "wrong": 2}),
        ("prm", [A], {"unfinished": 2, "wrong": 2, "low": 1}),
    ],
)
def test_filters_by_hand(policy, name, kept, dropped):
    """Bugs: an unfinished chain teaches never to end; a hinted chain that is wrong slips through the loosest filter."""
    found, why, cost = sift(ALL, replace(CONFIG, filter=name, cap=9), Judge(so=(0.2, 0.9)), policy)
    assert [c._replace(trace=None) for c in found] == [c._replace(trace=None) for c in kept]
    assert why == dropped and len(ALL) == len(found) + sum(why.values())
    assert (cost.judged > 0) == (name == "prm")


@pytest.mark.parametrize(
    "scores, aggregate, threshold, reason",
    [
        ((0.9, 0.6), None, 0.6, None),
        ((0.9, 0.6), None, 0.61, "low"),
        ((0.9, 0.6), "mean", 0.75, None),
        ((0.9, None), None, 0.0, "unknown"),
        ((None, 0.6), "last", 0.5, None),
        ((None, 0.6), "min", 0.5, "unknown"),
    ],
)
def test_an_unknown_score_is_not_zero(policy, scores, aggregate, threshold, reason):
    """Bugs: None counted as 0 (reason `low`) or as good; the aggregate that was asked for is ignored."""
    config = replace(CONFIG, filter="prm", aggregate=aggregate, threshold=threshold)
    kept, dropped, _ = sift([C], config, Judge(**{"1+2=3": scores}), policy)
    assert dropped == ({reason: 1} if reason else {}) and len(kept) == (reason is None)
    assert [c.trace.scores for c in kept] == [list(scores)] * len(kept)


def test_dedupe_variety_and_cap():
    """Bugs: the cap is filled with one chain over and over; the cap counts over all problems and not in each."""
    other = [c._replace(problem=replace(c.problem, id="p/2")) for c in (A, A, B)]
    some = [A, A, A, B, C, *other]
    kept, dropped, _ = sift(some, CONFIG)
    assert kept == [A, C, other[0], other[2]] and dropped == {"duplicate": 3, "cap": 1}
    kept, dropped, _ = sift(some, replace(CONFIG, dedupe=False))
    assert kept == [A, A, *other[:2]] and dropped == {"cap": 4}, "without it the first drawn stay, twins and all"
    assert distinct(some) == [A, B, C, *other[:1], *other[2:]][:3]
    assert varied([A, B, C], 2) == [A, C] and varied([B, A, C], 1) == [B] and varied([A, B, C], 9) == [A, B, C]


def test_what_judging_costs(policy, encoder):
    """Bugs: the compute of judging goes uncounted; chains that fell already, or have scores already, are judged."""
    scored = chain(["1+2=3", "3"], scores=(0.5, 0.7))
    judge = Judge()
    found, cost = judged([A, scored], judge, policy)
    tokens = len(encoder.encode("1+1+1", A.trace.steps).ids)
    assert (cost.judged, cost.verifier_calls, cost.verifier_flops) == (tokens, 1, 2.0 * tokens)
    assert found[1] is scored and found[0].trace.scores == [0.9] * 3
    judge.spent = [(Cost(judged=5), Cost(judged=7, verifier_calls=2))]
    assert replace(judged([A], judge, policy)[1], verifier_seconds=0.0) == Cost(judged=12, verifier_calls=2)
    assert judge.judged == 2
    sift([WRONG, CUT], replace(CONFIG, filter="prm"), judge, policy)
    assert judge.judged == 2


def test_a_chain_that_the_verifier_cannot_read_is_unknown(policy):
    """Bug: one prompt that is too long for the verifier ends the run."""

    class Short(Judge):
        def score(self, items):
            if long := {p.id: "too long" for p, _ in items if p.id == "p/2"}:
                raise ProblemError(long)
            return super().score(items)

    other = C._replace(problem=replace(C.problem, id="p/2"))
    kept, dropped, _ = sift([C, other], replace(CONFIG, filter="prm"), Short(), policy)
    assert [c.problem.id for c in kept] == ["p/1"] and dropped == {"unknown": 1}


def test_hints_that_fit_nowhere_are_counted(base, held, tmp_path, monkeypatch):
    """Bug: where a question fits and the hinted one does not, the round ended, after all its chains were paid."""
    monkeypatch.setattr(flywheel, "right_answer", lambda p, trace: False)
    monkeypatch.setattr(flywheel, "hinted", lambda p: replace(p, prompt="+".join("1" * 600)))
    config = replace(CONFIG, rationalise=True, rounds=1, strict=False)
    with pytest.warns(UserWarning, match="could not be served"):
        row = go(base, tmp_path / "run", config)[-1]
    assert row["hints_unserved"] == row["problems"] > 0 and row["unserved"] == row["hinted"] == row["kept"] == 0


@pytest.mark.parametrize("scores", [(0.5,), (0.5, 0.5, 0.5), (0.5, 1.5), (0.5, float("nan"))])
def test_scores_that_are_none(policy, scores):
    with pytest.raises(WorkbenchError, match="p/1: Judge gave .* for 2 steps, .*: mend it"):
        judged([C], Judge(**{"1+2=3": scores}), policy)


def test_too_few_rows_of_scores(policy):
    judge = Judge()
    judge.score = lambda items: [(0.5, 0.5)]
    with pytest.raises(WorkbenchError, match="1 rows of scores for 2 chains"):
        judged([C, B], judge, policy)


# --- rounds -------------------------------------------------------------------------------------------------------


def test_the_history_counts_every_chain(straight):
    """Bugs: chains that vanish uncounted; a yield after the filter."""
    first, *rounds = straight.history
    assert [row["round"] for row in straight.history] == [0, 1, 2] and set(first) == {
        "round",
        "held_out",
        "held_out_right",
        "check_cost",
    }
    for row in rounds:
        assert row["sampled"] == 4 * row["problems"] == 48 and row["unserved"] == row["hinted"] == 0
        assert row["sampled"] == row["kept"] + sum(row["dropped"].values())
        assert {"wrong", "unfinished"} <= set(row["dropped"]) and row["hinted_yield"] is None
        assert row["yield"] == row["right"] / row["sampled"] and 0 < row["solved"] <= row["right"]
        assert row["loss"] > 0 and {"sampled", "trained", "training_flops", "policy_flops"} <= set(row["cost"])
        assert "judged" not in row["cost"]


def test_what_is_kept_is_read_again(straight):
    for row in straight.history[1:]:
        chains = read_chains(straight.run, row["round"])
        assert len(chains) == row["kept"] and {c.source for c in chains} == {"sampled"}
        assert all(c.right and flywheel.right_answer(c.problem, c.trace) for c in chains)
        assert all(len(s.ids) == len(s.logprobs) > 0 and s.score is None for c in chains for s in c.trace.steps)
        per = {c.problem.id: sum(d.problem == c.problem for d in chains) for c in chains}
        assert (
            max(per.values()) <= CONFIG.cap
            and distinct(chains)
            and set(per) <= {p.id for p in flywheel.problems("arithmetic", CONFIG)}
        )
    with pytest.raises(WorkbenchError, match="2 rounds"):
        read_chains(straight.run, 3)


def test_the_weights_on_disk_load_and_differ(straight, base):
    one, two = (LocalPolicy.load(straight.folder / "rounds" / r / "model") for r in "12")
    tables = [p.model.get_input_embeddings().weight for p in (base, one, two)]
    assert not any(torch.equal(tables[i], tables[j]) for i, j in ((0, 1), (1, 2), (0, 2)))


def test_the_check_is_of_the_model_and_nothing_else(straight, base, held):
    """Bugs: a hint or the training temperature in the check; fresh noise in every round, so that pairs do not pair."""
    seed = tasks.digest("check", CONFIG.seed) >> 1
    results = search.drive(held, "majority", base, seed=seed, sampling=CONFIG.sampling, n=2)
    want = [sum(flywheel.right_answer(p, leaf.trace) for leaf in r.leaves) for p, r in zip(held, results, strict=True)]
    for config in (CONFIG, replace(CONFIG, temperature=0.3, rationalise=True)):
        row = flywheel.check(base, held, config)
        assert row["held_out_right"] == want == straight.history[0]["held_out_right"]
        assert row["held_out"] == sum(want) / 10
    assert row["check_cost"]["sampled"] == sum(r.cost.sampled for r in results)
    assert flywheel.check(base, [], CONFIG) == {"held_out": None}, "nothing was held out, so nothing is known"


@pytest.mark.parametrize("restart", [True, False])
def test_restart(straight, base, micro, tmp_path, monkeypatch, restart):
    """Bugs: a restart that goes on from the last round; a base that was trained in place and is none any more."""
    begun, inner = [], flywheel.fit
    monkeypatch.setattr(flywheel, "fit", lambda model, *a, **k: (begun.append(state(model)), inner(model, *a, **k))[1])
    go(base, tmp_path / "run", replace(CONFIG, restart=restart))
    last = load_file(tmp_path / "run" / "rounds" / "1" / "model" / "model.safetensors")
    assert same(begun[0], micro.state_dict()) and same(begun[1], micro.state_dict() if restart else last)
    assert same(micro.state_dict(), base.model.state_dict()), "the base comes back as it was"
    assert not same(last, micro.state_dict())
    one, two = (straight.files[f"rounds/{r}/chains.jsonl"] for r in "12")
    assert (tmp_path / "run" / "rounds" / "1" / "chains.jsonl").read_bytes() == one
    assert one != two and (tmp_path / "run" / "rounds" / "2" / "chains.jsonl").read_bytes() == two, "sampling is alike"


def state(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a.keys() & b.keys()) and len(a.keys() & b.keys()) > 10


def test_no_training_row_has_the_hint(base, tmp_path, monkeypatch):
    """Bugs: a policy that is taught to wait for hints; hinted chains that are passed off as sampled ones."""
    rows, prompts, fit, extend = [], [], flywheel.fit, base.extend
    monkeypatch.setattr(flywheel, "fit", lambda model, data, *a, **k: (rows.extend(data), fit(model, data, *a, **k))[1])
    monkeypatch.setattr(base, "extend", lambda ws, *a: (prompts.extend(w.problem for w in ws), extend(ws, *a))[1])
    config = replace(CONFIG, rounds=1, problems=40, samples=1, cap=1, rationalise=True)
    row = go(base, tmp_path / "run", config)[1]
    assert all(p.answer is None for p in prompts), "a search saw the gold answer"
    asked = {p.prompt for p in prompts if "(answer " in p.prompt}
    assert len(asked) == row["hinted"] == row["sampled"] - row["right"] > 0
    chains = read_chains(Run.existing(tmp_path / "run"), 1)
    helped = [c for c in chains if c.source == "hinted"]
    assert len(helped) == row["kept_hinted"] == row["hinted_right"] > 0 and all(c.right for c in helped)
    assert row["hinted_yield"] == row["hinted_right"] / row["hinted"] and row["yield"] == row["right"] / row["sampled"]
    assert row["sampled"] + row["hinted"] == row["kept"] + sum(row["dropped"].values())
    texts = [base.encoder.tokenizer.decode(r.ids, clean_up_tokenization_spaces=False) for r in rows]
    assert len(texts) == len(chains) and not any("answer " in text for text in texts)
    for c in helped:
        assert any(text.startswith(f"<user>{c.problem.prompt}</user>") for text in texts)


def test_a_search_teaches(base, tmp_path, monkeypatch):
    """Bugs: the search's own bill is lost; what it scored is judged, and billed, again."""
    results, drive, judge = [], search.drive, Judge(0.5)
    monkeypatch.setattr(search, "drive", lambda *a, **k: results.append(drive(*a, **k)) or results[-1])
    config = replace(CONFIG, rounds=1, search="beam", knobs={"width": 2}, filter="prm")
    row = go(base, tmp_path / "run", config, verifier=judge)[1]
    chains = read_chains(Run.existing(tmp_path / "run"), 1)
    assert {c.source for c in chains} == {"search"} and all(set(c.trace.scores) == {0.5} for c in chains)
    want = sum(r.cost for r in results[0])
    assert want.judged > 0 and {k: row["cost"][k] for k in ("sampled", "judged", "verifier_flops", "policy_flops")} == {
        "sampled": want.sampled,
        "judged": want.judged,
        "verifier_flops": want.verifier_flops,
        "policy_flops": want.policy_flops,
    }


def test_the_ledger_adds_up(base, tmp_path, monkeypatch):
    """Bug: what hints or judging cost is left out."""
    parts, drive, fit, judging = [], search.drive, flywheel.fit, flywheel.judged
    monkeypatch.setattr(search, "drive", lambda *a, **k: noted(drive(*a, **k), lambda rs: sum(r.cost for r in rs)))
    monkeypatch.setattr(flywheel, "fit", lambda *a, **k: noted(fit(*a, **k), lambda cost: cost))
    monkeypatch.setattr(flywheel, "judged", lambda *a: noted(judging(*a), lambda pair: pair[1]))

    def noted(value, cost):
        parts.append(cost(value))
        return value

    row = go(
        base, tmp_path / "run", replace(CONFIG, rounds=1, samples=1, filter="prm", rationalise=True), verifier=Judge()
    )
    cost = Cost(**row[1]["cost"])
    assert len(parts) == 4 and cost.tokens == sum(p.tokens for p in parts)
    assert cost.flops == pytest.approx(sum(p.flops for p in parts)) and cost.seconds > 0
    assert min(cost.sampled, cost.judged, cost.trained) > 0
    assert all(set(c.trace.scores) == {0.9} for c in read_chains(Run.existing(tmp_path / "run"), 1))


def test_problems_are_distinct_and_of_their_levels(monkeypatch):
    """Bug: the easy levels repeat a question, which then has twice the cap."""
    load = tasks.get("arithmetic").load
    monkeypatch.setattr(tasks.get("arithmetic"), "load", lambda *a: [p for p in load(*a) for _ in (0, 1)])
    found = flywheel.problems("arithmetic", replace(CONFIG, problems=9, levels=(1, 3)))
    assert [p.level for p in found] == [1] * 5 + [3] * 4 and {p.split for p in found} == {"train"}


def test_grading_is_the_tasks(monkeypatch, policy, sums):
    monkeypatch.setattr(flywheel, "right_answer", labels.right_answer)
    demo = tasks.get("arithmetic").demonstration(sums[0])
    for trace, want in ((demo, True), (replace(demo, stop="length"), False)):
        result = search.Result(sums[0], tree={(0,): search.Twig(Node((0,), trace.steps, trace.stop), 1, 0, 0.0)})
        assert [c.right for c in flywheel.drawn([result], sums[:1], "sampled")] == [want]


def test_a_first_round_is_made_once(straight, base, held, tmp_path):
    """Bug: a run that takes over another's first round goes on to other chains or weights than if it had made it."""
    config, folder = replace(CONFIG, restart=False), tmp_path / "after"
    alone = go(base, tmp_path / "alone", config, held_out=held)
    for _ in range(2):  # the second time there is a first round already
        flywheel.begin_as(Run.open(folder, {"config": config}), straight.run)
    assert sorted(p.name for p in (folder / "rounds").iterdir()) == ["1"]
    assert timeless(go(base, folder, config, held_out=held)) == timeless(alone)
    assert on_disk(folder) == on_disk(tmp_path / "alone")


# --- a run that is killed -----------------------------------------------------------------------------------------

PLACES = [("_row", 3), ("drawn", 4), ("fit", 2), ("check", 3)]


@pytest.mark.parametrize("name, call", PLACES, ids=[f"{name}{call}" for name, call in PLACES])
def test_exact_resume(straight, micro, tokenizer, base, held, tmp_path, monkeypatch, name, call):
    """Bugs: a round that is made twice; half a round that counts as whole; a resumed run that is another run."""
    calls, inner, folder = [], getattr(flywheel, name), tmp_path / "straight"

    def dies(*args, **more):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return inner(*args, **more)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(flywheel, name, dies)
        go(base, folder, held_out=held)
    assert same(micro.state_dict(), base.model.state_dict()), "a killed cell that is run again has the same base"
    finished = len(Run.existing(folder).read("history"))
    junk = folder / "rounds" / f"{finished}.tmp"  # what a power cut leaves
    junk.mkdir(exist_ok=True)
    (junk / "chains.jsonl").write_text('{"half a ro')
    trained, fit = [], flywheel.fit
    monkeypatch.setattr(flywheel, "fit", lambda *a, **k: (trained.append(1), fit(*a, **k))[1])
    history = go(LocalPolicy(copy.deepcopy(micro), tokenizer), folder, held_out=held)
    assert len(trained) == 3 - max(1, finished), "a finished round is skipped"
    assert timeless(history) == timeless(straight.history) and on_disk(folder) == straight.files


def test_a_finished_run_is_read(straight, base, held):
    assert go(base, straight.folder, held_out=held) == straight.history
    assert on_disk(straight.folder) == straight.files


def test_the_seed_is_the_data():
    """Bug: seed + index, so seed 1 is seed 0 shifted by one."""
    one, two = ({p.prompt for p in flywheel.problems("arithmetic", replace(CONFIG, seed=seed))} for seed in (0, 1))
    assert len(one | two) == 2 * CONFIG.problems


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "knobs, complaint",
    [
        *(({name: 0}, f"{name}=0: at least 1") for name in ("rounds", "problems", "samples", "cap", "checks")),
        ({"chain_tokens": 0}, "chain_tokens=0: at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0: at least 0"),
        ({"threshold": 1.5}, "threshold=1.5: from 0 to 1"),
        ({"filter": "answers"}, "unknown filter 'answers'"),
        ({"aggregate": "mode"}, "unknown aggregate 'mode'"),
        ({"search": "beem"}, "did you mean 'beam'"),
        ({"search": "beam", "knobs": {"n": 4}}, "the n of the search is `samples`"),
        ({"fit": Fit(target=0.5)}, "leave target"),
        ({"fit": Fit(save=True)}, "leave target"),
    ],
)
def test_settings_that_cannot_be(knobs, complaint):
    with pytest.raises(WorkbenchError, match=complaint):
        Flywheel(**knobs)


@pytest.mark.parametrize(
    "knobs, complaint",
    [
        ({"filter": "prm"}, "pass a verifier"),
        ({"search": "beam", "knobs": {"width": 2}}, "pass a verifier"),
        ({"knobs": {"width": 2}}, "majority has no knob width"),
        ({"search": "greedy"}, "greedy has no knob n"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"levels": (99,)}, "no level 99"),
    ],
)
def test_runs_that_cannot_begin(base, tmp_path, knobs, complaint):
    with pytest.raises(WorkbenchError, match=complaint):
        go(base, tmp_path / "run", replace(CONFIG, **knobs))
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_a_round_without_a_right_chain_keeps_the_last_weights(straight, base, tmp_path, monkeypatch):
    """Bug: trained on nothing, or on what was left from the round before."""
    inner, rounds = flywheel.drawn, []

    def drawn(results, asked, source):
        rounds.append(1)
        return [c._replace(right=c.right and len(rounds) == 1) for c in inner(results, asked, source)]

    monkeypatch.setattr(flywheel, "drawn", drawn)
    with pytest.raises(WorkbenchError, match="round 2 kept none of its 48 chains .*'wrong'.*left stays"):
        go(base, tmp_path / "run")
    name = "rounds/1/model/model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == straight.files[name]
    assert [p.name for p in (tmp_path / "run" / "rounds").iterdir()] == ["1"]
    assert [row["round"] for row in Run.existing(tmp_path / "run").read("history")] == [0, 1]


def test_a_verifier_that_knows_nothing(base, tmp_path):
    with pytest.raises(WorkbenchError, match="round 1 kept none .*'unknown'"):
        go(base, tmp_path / "run", replace(CONFIG, filter="prm"), verifier=Judge(None))


def test_a_split_that_runs_dry(base, tmp_path, monkeypatch):
    few = {p.prompt: (replace(p, split="train"), None) for p in tasks.get("arithmetic").load("train", 3, level=1)}
    load = lambda split, n, seed, level: tasks.pick("few", few, split, n, seed, level, (1,))  # noqa: E731
    monkeypatch.setattr(tasks.get("arithmetic"), "load", load)
    with pytest.raises(WorkbenchError, match="few has 3 train problems of level 1"):
        go(base, tmp_path / "run")


def test_what_is_learnt_is_not_reported_on(base, tmp_path):
    with pytest.raises(WorkbenchError, match="the flywheel are also reported on"):
        go(base, tmp_path / "run", held_out=flywheel.problems("arithmetic", CONFIG)[:1])


def test_weights_that_are_gone(straight, base, tmp_path):
    run = Run.open(tmp_path / "run", {"config": CONFIG})
    run.append("history", straight.history[:2])
    with pytest.raises(WorkbenchError, match="model is gone"):
        go(base, tmp_path / "run")


def test_four_bits_without_an_adapter_do_not_learn(base, tmp_path):
    base.model.is_quantized = True
    with pytest.raises(WorkbenchError, match="put a LoRA adapter on them"):
        go(base, tmp_path / "run")


# --- adapters -----------------------------------------------------------------------------------------------------


def adapted(folder, quantised):
    """A policy with a LoRA adapter that already does something, on the model in `folder`."""
    model, tokenizer = load_model(folder, dtype=torch.float32, **(four_bit(torch.float32) if quantised else {}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lora = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1, task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.02)
    return LocalPolicy(model, tokenizer)


@pytest.mark.parametrize("quantised", [False, True])
def test_an_adapter_turns_the_flywheel(micro, tokenizer, held, tmp_path, monkeypatch, quantised):
    """Bugs: a restart from the base without its adapter; a checkpoint with the base in it, or that does not load; a
    base that moves; a killed run that goes on otherwise."""
    micro.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    config = replace(CONFIG, fit=replace(FIT, muon_lr=0.0, lr=5e-3))  # four bits leave the tiny base few chains to keep
    policy, begun, inner = adapted(tmp_path / "base", quantised), [], flywheel.fit
    before = state(policy.model)
    monkeypatch.setattr(flywheel, "fit", lambda model, *a, **k: (begun.append(state(model)), inner(model, *a, **k))[1])
    history = go(policy, tmp_path / "straight", config, held_out=held)
    assert [same(b, before) for b in begun] == [True, True] and same(state(policy.model), before)
    assert [p.requires_grad for p in policy.model.parameters()] == ["lora_" in name for name in before]
    for number in "12":
        folder = tmp_path / "straight" / "rounds" / number / "model"
        files = {p.name for p in folder.iterdir()}
        assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= files
        assert not [f for f in files if f.endswith((".bin", ".pt", ".pth"))] and "model.safetensors" not in files
        kept = load_file(folder / "adapter_model.safetensors")
        assert len(kept) == sum("lora_" in name for name in before) and all("lora_" in name for name in kept)

    loaded = LocalPolicy.load(folder)
    assert flywheel.check(loaded, held, config)["held_out_right"] == history[2]["held_out_right"]
    flywheel.restore(policy, folder)
    mine, theirs = state(policy.model), state(loaded.model)
    assert all(torch.equal(p, theirs[name]) for name, p in mine.items()) and mine.keys() == theirs.keys()
    assert not same({n: p for n, p in mine.items() if "lora_" in n}, before)
    assert same({n: p for n, p in mine.items() if "lora_" not in n}, before), "the base has moved"

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(flywheel, "_row", lambda chain: _die() if len(begun) == 4 else _row(chain))
        go(adapted(tmp_path / "base", quantised), tmp_path / "killed", config, held_out=held)
    again = go(adapted(tmp_path / "base", quantised), tmp_path / "killed", config, held_out=held)
    assert timeless(again) == timeless(history) and on_disk(tmp_path / "killed") == on_disk(tmp_path / "straight")


_row = flywheel._row


def _die():
    raise Killed


def test_an_adapter_among_several_goes_on(micro, tokenizer, tmp_path, monkeypatch):
    """Bugs: the adapter that is on learns, and not the policy's; without `restart` a round forgets the one before; an
    adapter that was opened for reading does not learn."""
    micro.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    one = adapted(tmp_path / "base", False)
    for name in ("policy", "other"):
        save_adapter(one.model, "default", tokenizer, tmp_path / name)
    model, tokenizer = one_base(tmp_path / "base", {"policy": tmp_path / "policy", "other": tmp_path / "other"}, False)
    model.set_adapter("other")
    policy = LocalPolicy(model, tokenizer, adapter="policy")
    before, flags = state(model), [p.requires_grad for p in model.parameters()]
    config = replace(CONFIG, restart=False, fit=replace(FIT, muon_lr=0.0, lr=2e-2))
    begun, inner = [], flywheel.fit
    monkeypatch.setattr(flywheel, "fit", lambda model, *a, **k: (begun.append(state(model)), inner(model, *a, **k))[1])
    go(policy, tmp_path / "run", config)
    assert same(state(model), before) and [p.requires_grad for p in model.parameters()] == flags
    flywheel.restore(policy, tmp_path / "run" / "rounds" / "1" / "model")
    assert same(begun[0], before) and same(begun[1], state(model)) and not same(begun[1], before)
    flywheel.restore(policy, tmp_path / "run" / "rounds" / "2" / "model")
    moved = {name for name, p in state(model).items() if not torch.equal(p, before[name])}
    assert moved and all("lora_" in name and ".policy." in name for name in moved)
    model.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(WorkbenchError, match="embed_tokens.weight would learn beside the adapter 'policy'"):
        go(policy, tmp_path / "more", config)
    about = tmp_path / "policy" / "adapter_config.json"
    about.write_text(about.read_text().replace(str(tmp_path / "base"), ""))
    with pytest.raises(WorkbenchError, match="names no base"):
        LocalPolicy.load(tmp_path / "policy")
