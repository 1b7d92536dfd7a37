"""Records: each test names the mistake it pins."""

import itertools
import json
import tracemalloc

import pytest

from workbench import evaluate, trees
from workbench.policies import Want
from workbench.policies.scripted import Scripted
from workbench.runs import Run
from workbench.search import Memo, Result
from workbench.tasks import get
from workbench.types import Node, ProblemError, Record

COIN = Scripted({(): [("1+2=3", 0.5), ("=0", 0.5)], ("1+2=3",): [("=1", 0.5), ("?", 0.5)]})


@pytest.fixture(scope="module")
def sampled(asked):
    return evaluate.samples("run", asked(50), COIN, n=8, seed=2)


def test_a_record_a_chain_and_nothing_else(sampled, asked):
    """Bugs: grouped by text, so problems that ask the same merge; a chain counted twice or lost."""
    rows, chains = sampled
    assert [(row.problem, row.seed) for row in rows] == [(p.id, k) for p in asked(50) for k in range(8)]
    assert [problem for problem, _ in chains] == asked(50)
    flat = [trace for _, traces in chains for trace in traces]
    assert [row.answer for row in rows] == [trace.answer for trace in flat]
    assert {row.answer for row in rows} == {"1", "0", None}
    assert all(row.correct is (row.answer == "1") for row in rows), "an unfinished chain is wrong, not unknown"
    assert {row.knobs["stop"] for row in rows} == {"answer", "cut"}
    assert all(Record.of(json.loads(row.to_json())) == row for row in rows)


def test_samples_are_what_the_policy_draws(sampled, asked):
    """Bug: samples in another order than their numbers, so pairing over seeds pairs strangers."""
    chains = COIN.extend([Want(p, Node(), 8, to_end=True) for p in asked(50)], 2)
    assert [trace for _, traces in sampled[1] for trace in traces] == [c[-1].trace for cs in chains for c in cs]


def test_a_sample_costs_its_own_tokens(sampled, asked):
    """Bug: the first of n samples is charged for all of them, so one sample looks n times as dear."""
    rows, chains = sampled
    tokens = [trace.tokens for _, traces in chains for trace in traces]
    assert [row.cost.sampled for row in rows] == tokens and min(tokens) > 0
    prompt = COIN.prompt_tokens(asked(1)[0], Node())
    assert [row.cost.prompt for row in rows] == [prompt, *[0] * 7] * 50
    whole = evaluate.search("run", asked(50), "majority", COIN, seeds=(2,), n=8)
    for i, record in enumerate(whole):
        parts = sum(row.cost for row in rows[8 * i : 8 * i + 8])
        assert (parts.sampled, parts.prompt, parts.policy_calls) == (record.cost.sampled, record.cost.prompt, 1)
        assert parts.policy_flops == pytest.approx(record.cost.policy_flops)


def test_a_share_of_right_chains(asked):
    """Against the probability itself: .25, within four standard errors."""
    rows, _ = evaluate.samples("run", asked(800), COIN, 2)
    assert sum(r.correct for r in rows) / len(rows) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 1600) ** 0.5)


def test_an_abstention_is_wrong(asked):
    """Bug: a search that did not answer is left out, so abstaining raises accuracy."""
    record = evaluate.record("run", Result(asked(1)[0], None), 3, method="x")
    assert record.correct is False and record.answer is None and record.knobs == {"method": "x"}


def test_search_records(asked):
    """Bugs: a seed that is not passed on; knobs or a label that get lost; a memo that changes a bill."""
    problems, memos = asked(20), {}
    for n in (2, 4):
        fresh = evaluate.search("run", problems, "majority", COIN, seeds=(0, 1), n=n, label="vote")
        again = evaluate.search("run", problems, "majority", COIN, seeds=(0, 1), n=n, label="vote", memos=memos)
        strip = [(r.problem, r.seed, r.answer, r.correct, r.cost.sampled, r.cost.flops, r.knobs) for r in fresh]
        assert strip == [(r.problem, r.seed, r.answer, r.correct, r.cost.sampled, r.cost.flops, r.knobs) for r in again]
        assert {r.knobs["n"] for r in fresh} == {n} and {r.knobs["method"] for r in fresh} == {"vote"}
    assert [r.seed for r in fresh] == [0] * 20 + [1] * 20
    assert [r.answer for r in fresh[:20]] != [r.answer for r in fresh[20:]]
    assert set(memos) == {0, 1} and all(isinstance(memo, Memo) and memo.chains for memo in memos.values())


# --- records that go to disk as they come ---


class Dies(Scripted):
    """A policy whose machine goes down in the middle of the work."""

    def __init__(self, table, calls):
        super().__init__(table)
        self.calls = calls

    def extend(self, *args):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return super().extend(*args)


def told(run, name):
    rows = run.read(name)
    for row in rows:
        row.get("cost", {}).pop("policy_seconds", None)
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


def test_a_run_that_was_killed_goes_on(asked, tmp_path):
    """Bugs: records twice or lost after a crash; other results than without it; a tree without its record."""
    whole, cut = (Run.open(tmp_path / name / "run", {}, {}) for name in ("whole", "cut"))
    more = {"seed": 2, "tree": True, "every": 4, "n": 6, "batch": 2, "label": "vote", "confidence": 0.9}
    assert evaluate.into(whole, asked(40), "adaptive", COIN, **more) == 40
    for calls in (3, 6, 2):
        with pytest.raises(KeyboardInterrupt):
            evaluate.into(cut, asked(40), "adaptive", Dies(COIN.table, calls), **more, window=9)
    assert 0 < len(cut.read("records")) < 40
    left = 40 - len(cut.read("records"))
    assert evaluate.into(cut, asked(40), "adaptive", COIN, **more) == left
    assert [told(cut, "records"), told(cut, "trees")] == [told(whole, "records"), told(whole, "trees")]
    assert evaluate.into(cut, asked(40), "adaptive", COIN, **more) == 0
    assert evaluate.into(cut, asked(40), "adaptive", COIN, **{**more, "seed": 3}) == 40, (
        "another seed is another record"
    )
    assert {branch.problem for branch in trees.load(cut.path / "trees.jsonl")} == {p.id for p in asked(40)}


def test_a_search_of_ones_own_is_called_by_its_name(asked, tmp_path):
    """Bug: a function where a name is known was written as JSON, and failed after the work."""
    from workbench.search import get

    def mine(root, *, n=2):
        return (yield from get("majority")(root, n=n))

    run = Run.open(tmp_path / "run", {}, {})
    assert evaluate.into(run, asked(3), mine, COIN, n=2) == 3
    assert {row["knobs"]["method"] for row in run.read("records")} == {"mine"}


def test_a_problem_that_fails_is_a_record_that_says_why(asked, tmp_path):
    """Bug: one bad problem ends a run of thousands, or vanishes from it."""

    class Picky(Scripted):
        def extend(self, wants, *args):
            if bad := {w.problem.id: "too long for the context of 8" for w in wants if w.problem.id.endswith("/7")}:
                raise ProblemError(bad)
            return super().extend(wants, *args)

    run = Run.open(tmp_path / "run", {}, {})
    assert evaluate.into(run, asked(20), "majority", Picky(COIN.table), n=2) == 20
    failed = [row for row in run.read("records") if "error" in row["knobs"]]
    assert [(row["problem"], row["answer"], row["correct"]) for row in failed] == [("toss/7", None, False)]
    assert failed[0]["knobs"]["error"] == "too long for the context of 8"
    assert evaluate.into(run, asked(20), "majority", Picky(COIN.table), n=2) == 0, "it is not tried again"


def test_samples_of_a_problem_that_fails_are_wrong(asked):
    """Bug: they were left out, so that pass@1 had fewer problems than a search's accuracy."""

    class Picky(Scripted):
        def extend(self, wants, *args):
            if bad := {w.problem.id: "too long" for w in wants if w.problem.id.endswith("/1")}:
                raise ProblemError(bad)
            return super().extend(wants, *args)

    with pytest.warns(UserWarning, match="could not be served"):
        rows, chains = evaluate.samples("", asked(3), Picky(COIN.table), n=2)
    assert [(r.problem, r.seed) for r in rows] == [(f"toss/{i}", k) for i in range(3) for k in range(2)]
    assert [(r.correct, r.knobs["error"]) for r in rows if r.problem == "toss/1"] == [(False, "too long")] * 2
    assert [len(traces) for _, traces in chains] == [2, 0, 2]


def test_memory_does_not_grow_with_the_problems(tmp_path):
    """Bug: every tree is kept until the last problem is done."""

    def peak(n):
        run = Run.open(tmp_path / str(n), {}, {})
        problems = itertools.islice(get("countdown").load("train", n), n)
        tracemalloc.start()
        evaluate.into(run, problems, "majority", COIN, n=8, window=32)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(64)
    few, many = peak(128), peak(2048)
    assert many < 2 * few + 4_000_000, "problems and their records' keys, and no trees"
