"""Law tests of every search and of the driver."""

import gc
from collections import Counter
from dataclasses import replace

import pytest
from searching import JUDGE, POLICY, TABLE, Judge, go, knobs, seen, spy, starve

from workbench import search
from workbench.format import render_step
from workbench.policies import Sampling, Want
from workbench.policies.scripted import Scripted
from workbench.search import Grow, Memo, drive
from workbench.types import Budget, Node, ProblemError, Step, WorkbenchError

SEEDLESS = ("greedy",)


@pytest.fixture(params=search.names())
def name(request):
    return request.param


def test_the_searches_are_found():
    assert set(search.names()) >= {"greedy", "sampling", "majority", "best_of_n", "weighted_vote", "beam"}


def test_the_gold_answer_is_never_seen(name, asked):
    """Bug: tree accuracy reported as pass@k, because the selector saw the gold answer."""

    class Blindfolded(Scripted):
        def extend(self, wants, seed=0, sampling=Sampling()):
            assert all(want.problem.answer is None for want in wants), "a policy saw the gold answer"
            return super().extend(wants, seed, sampling)

    first = go(name, asked(30), Blindfolded(TABLE))
    other = go(name, [replace(p, answer="0") for p in asked(30)])
    assert seen(first) == seen(other)
    assert [r.problem.answer for r in first] == ["1"] * 30


@pytest.mark.parametrize("limit", [0, 1, 10, 25])
def test_the_budget_is_kept(name, asked, limit):
    """Bugs: a limit in samples where the promise was tokens; children drawn after it is spent."""
    for result in go(name, asked(30), budget=Budget(sampled=limit)):
        longest = max((sum(len(s.ids) for s in n.steps) for n in result.nodes), default=0)
        assert result.cost.sampled < limit + max(1, longest), "at most the chain that crossed the line"
        if result.cost.sampled >= limit:
            assert result.stop == "budget" or seen([result]) == seen(go(name, [result.problem]))
        if not limit:
            assert (result.nodes, result.answer, result.cost.flops, result.stop) == ([], None, 0, "budget")


def test_a_cut_search_answers_with_what_it_has(asked):
    """Bug: a search over its budget answers nothing, so every curve begins at 0."""
    results = go("majority", asked(40), budget=Budget(sampled=12))
    assert {r.stop for r in results} == {"budget"}
    for r in results:
        votes = Counter(leaf.trace.answer for leaf in r.leaves if leaf.trace.answer)
        assert len(r.leaves) < 6 and (r.answer is None) == (not votes)
        assert r.answer is None or votes[r.answer] == max(votes.values())
    assert sum(r.answer is not None for r in results) > 30


OTHER_WAYS = {
    "lookahead": {"k": 2},
    "mcts": {"value": "rollout"},
    "revisions": {"context": True},
    "budget_forcing": {"extend": 3, "cap": 14},
    "hybrid": {"threshold": 0.0},
}


@pytest.mark.parametrize("fed", range(6))
def test_a_search_that_is_told_to_stop_gives_what_it_holds(name, asked, fed):
    """Bugs: a search that asks on when its budget is spent, so that the driver closes it and its answer is lost; one
    that throws away what it held while it waited for more."""
    for more in ({}, OTHER_WAYS.get(name, {})):
        log = []
        drive(asked(20), starve(name, fed, log), POLICY, JUDGE, seed=1, **knobs(name, n=6, width=2), **more)
        for held, answer in log:
            assert answer is not None or not any(leaf.stop == "answer" for leaf in held)
        assert len(log) == 20 and (fed or all(answer is None for _, answer in log))


@pytest.mark.parametrize(
    "name, wrong",
    [
        ("beam", {"n": 6, "width": 4}),
        ("dvts", {"n": 6, "width": 4}),
        ("lookahead", {"k": -1}),
        ("mcts", {"value": "critic"}),
        ("mcts", {"n": 0}),
        ("mcts", {"c": -1.0}),
        ("particle", {"temperature": 0.0}),
        ("revisions", {"n": 0}),
        ("budget_forcing", {"cap": 0}),
        ("budget_forcing", {"extend": -1}),
        ("adaptive", {"batch": 0}),
        ("adaptive", {"confidence": 95}),
        ("hybrid", {"probe": 0}),
        ("hybrid", {"probe": 20}),
        ("hybrid", {"n": 6, "width": 4, "threshold": 1.1}),  # said even where no problem is hard enough for a beam
    ],
)
def test_a_knob_that_makes_no_sense_is_named(asked, name, wrong):
    """Bug: a knob out of its range gives a search that is another one, and its curve is drawn."""
    knob, value = list(wrong.items())[-1] if "width" not in wrong else ("width", 4)
    with pytest.raises(WorkbenchError, match=f"{knob}={value!r}"):
        drive(asked(2), name, POLICY, JUDGE, **wrong)


def test_a_budget_of_flops_counts_the_verifier(asked):
    """Bug: verifier compute is uncounted (in one published table it was 90 % of all)."""
    limit = 150.0
    [free], [judged] = (go(method, asked(1), budget=Budget(flops=limit), n=200) for method in ("majority", "best_of_n"))
    assert free.cost.verifier_flops == 0 and judged.cost.verifier_flops > judged.cost.policy_flops
    for method in search.names():
        [cut] = go(method, asked(1), budget=Budget(flops=limit))
        assert cut.cost.flops < limit + 60  # a child that was begun is finished, and read
    assert go("beam", asked(1), budget=Budget(flops=limit))[0].cost.flops < go("beam", asked(1))[0].cost.flops


def test_the_cost_adds_up(name, asked):
    """Bugs: tokens reported as 0 or -1; a prompt counted once a sample; scoring for free."""
    log, problems = [], asked(30)
    for result, requests in zip(
        drive(problems, spy(name, log), POLICY, JUDGE, seed=1, **knobs(name, n=6, width=2)), log, strict=True
    ):
        cost, blind = result.cost, result.problem.blind()
        assert cost.sampled == sum(len(node.steps[-1].ids) for node in result.nodes) > 0
        grown = {node.path: node for request in requests for node in request.nodes}
        assert not any(node.finished for node in grown.values()), "a finished chain was asked to grow"
        root = POLICY.prompt_tokens(blind, Node())
        written = [node for node in grown.values() if node.path and not node.steps[-1].ids]  # by the search itself
        assert cost.prompt == root + sum(len(render_step(n.steps[-1])) for n in written), "read once"
        assert cost.policy_calls >= len(grown)
        assert cost.policy_flops == POLICY.flops(0, cost.prompt) + POLICY.flops(0, cost.sampled)
        scored = [node for node in result.nodes if node.score is not None]
        if any(request.score for request in requests):
            assert cost.judged == root + sum(len(node.steps[-1].ids) for node in scored), "judged once"
        else:
            assert cost.judged == cost.verifier_calls == 0 and not scored
        assert cost.verifier_flops == JUDGE.flops(0, cost.judged) and cost.verifier_calls <= len(scored)
        assert cost.policy_seconds > 0 and (cost.verifier_seconds > 0) == bool(scored)


def test_the_tree_is_a_tree(name, asked):
    """Bugs: nodes kept twice; a child that does not continue its parent."""
    for result in go(name, asked(30)):
        by_path = {node.path: node for node in result.nodes}
        assert len(by_path) == len(result.nodes)
        for node in result.nodes:
            parent = by_path.get(node.path[:-1], Node())
            assert len(node.path) == len(node.steps) and not parent.finished
            assert [s.ids for s in node.steps[:-1]] == [s.ids for s in parent.steps]
        assert result.answer is None or result.answer in [leaf.trace.answer for leaf in result.leaves]


def test_a_seed_is_the_tree(name, asked):
    """Bug: a search that cannot be repeated."""
    assert seen(go(name, asked(30))) == seen(go(name, asked(30)))
    assert (seen(go(name, asked(30))) == seen(go(name, asked(30), seed=2))) == (name in SEEDLESS)


def test_the_order_of_problems_does_not_matter(name, asked):
    """Bug: results that depend on which problems were asked beside."""
    whole, some = seen(go(name, asked(30))), seen(go(name, asked(30)[::-3]))
    assert some == {i: whole[i] for i in some} and len(some) == 10


def test_a_memo_changes_nothing(name, asked):
    """Bug: a cache that makes a method look cheap, or gives it another method's chains or scores."""
    memo, problems = Memo(), asked(30)
    for other in search.names():
        go(other, problems, verifier=Judge(a=0.1), memo=memo)
        go(other, problems[:9], memo=memo, sampling=Sampling(0.5))
        go(other, problems[9:], memo=memo, seed=2)
    assert seen(go(name, problems, memo=memo)) == seen(go(name, problems))

    class Dry(Scripted):
        def extend(self, *args):
            raise AssertionError("what was drawn before was drawn again")

    memo.policy = Dry(TABLE)
    go(name, problems, memo.policy, memo=memo)


def test_every_search_draws_the_same_first_chain(asked):
    """Bug: methods compared on different luck."""
    first = [r.answer for r in go("sampling", asked(30))]
    for method in ("majority", "best_of_n", "weighted_vote"):
        assert [r.answer for r in go(method, asked(30), n=1)] == first


def test_an_unknown_knob_is_refused(name, asked):
    """Bug: options silently ignored."""
    for wrong in ("widht", "root"):
        with pytest.raises(WorkbenchError, match=f"{name} has no knob {wrong}"):
            drive(asked(1), name, POLICY, JUDGE, **{wrong: 3})


def test_an_unknown_search_is_refused(asked):
    with pytest.raises(WorkbenchError, match="'baem'.*'beam'"):
        drive(asked(1), "baem", POLICY)


def test_an_unknown_aggregate_is_refused(name, asked):
    if knobs(name, aggregate="max"):
        with pytest.raises(WorkbenchError, match="unknown aggregate 'max'"):
            go(name, asked(3), aggregate="max")


def test_the_aggregate_asked_for_is_used(name, asked):
    """Bug: the aggregation the user asked for is ignored in the vote."""
    if knobs(name, aggregate="min"):
        judge = Judge(a=0.2, b=0.9, **{"1": 0.8, "0": 0.3})
        found = [[r.answer for r in go(name, asked(60), verifier=judge, aggregate=a)] for a in ("last", "min", "prod")]
        assert found[0] != found[1]


class Never:
    """A policy that never closes a chain; a search that does not stop by itself runs into its patience."""

    def __init__(self, patience=300):
        self.patience = patience

    def flops(self, prefix, new, head=True):
        return float(new)

    def prompt_tokens(self, problem, node):
        return 1 + len(node.steps)

    def extend(self, wants, seed=0, sampling=Sampling()):
        self.patience -= 1
        assert self.patience > 0, "the search never stops"
        return [[self._chain(want, k) for k in range(want.first, want.first + want.n)] for want in wants]

    def _chain(self, want: Want, k: int):
        path, chain = (*want.node.path, k), []
        for depth in range(4 if want.to_end else 1):
            steps = (*want.node.steps, *[Step("so", ids=(1,), logprobs=(0.0,))] * (depth + 1))
            chain.append(Node((*path, *[0] * depth), steps, "length" if want.to_end and depth == 3 else None))
        return chain


def test_a_search_ends_and_abstains_when_nothing_closes(name, asked):
    """Bugs: a search that runs for ever; "length" read as finished; an answer out of nothing."""
    for result in go(name, asked(3), Never()):
        assert result.answer is None and result.stop == "done" and result.nodes


def test_a_verifier_that_is_no_verifier_is_named(name, asked):
    """Bugs: NaN sorts anywhere; a missing score is dropped in silence."""
    if go(name, asked(1))[0].cost.verifier_calls == 0:
        assert go(name, asked(1), verifier=None)[0].nodes
        return
    with pytest.raises(WorkbenchError, match="pass a verifier"):
        go(name, asked(1), verifier=None)

    class Broken(Judge):
        pass

    for wrong in (float("nan"), 1.5, -0.1):
        with pytest.raises(WorkbenchError, match="Broken"):
            go(name, asked(3), verifier=Broken(a=wrong, b=wrong, **{"1": wrong, "0": wrong}))

    class Short(Judge):
        def score(self, items):
            return [scores[:-1] for scores in super().score(items)]

    with pytest.raises(WorkbenchError, match="Short"):
        go(name, asked(3), verifier=Short())


class Wordless(Judge):
    def score(self, items):
        return None


class Sparse(Judge):
    def score(self, items):
        return super().score(items)[:-1]


class Hollow(Judge):
    def score(self, items):
        return [None for _ in items]


class Free:
    aggregate, score = "min", JUDGE.score


@pytest.mark.parametrize(
    "verifier, said",
    [
        (Wordless(), r"Wordless gave None and no rows of scores for \d chains"),
        (Sparse(), r"Sparse gave \d rows of scores for \d chains"),
        (Hollow(), "Hollow gave None for 1 steps, not a number in 0-1"),
        (Judge(a="good", b="good", **{"1": "good", "0": "good"}), r"Judge gave \('good',\) for 1 steps, not a number"),
        (Free(), "the verifier Free has no flops"),
    ],
)
def test_a_verifier_that_breaks_the_protocol_is_named(asked, verifier, said):
    """Bug: a traceback out of the driver for what a user's own verifier did."""

    def ask(root):
        yield Grow([root], 4)

    with pytest.raises(WorkbenchError, match=said):
        drive(asked(1), ask, Scripted({(): [("a", 0.25), ("b", 0.25), ("=1", 0.25), ("=0", 0.25)]}), verifier, seed=3)


def plain(root):
    return "5"


def nothing(root):
    pass


def words(root):
    yield "more"


def bare(root):
    yield Grow(root, 4)


def texts(root):
    yield Grow(["1+1=2"], 4)


def share(root):
    yield Grow([root], 4 / 2)


def chain(root):
    return (yield Grow([root], 4, score=False))[0].trace


def late(root):
    while (yield Grow([root], 4, score=False)):
        pass
    return 5


@pytest.mark.parametrize(
    "own, said",
    [
        (plain, "plain gave '5' and no generator: it asks with `children = yield Grow"),
        (nothing, "nothing gave None and no generator"),
        (words, "words yielded 'more': it asks with"),
        (bare, r"bare yielded Grow with nodes=Node\(.*, which is no list of nodes: it asks with"),
        (texts, r"texts yielded Grow with nodes=\['1\+1=2'\], which is no list of nodes: it asks with"),
        (share, "share yielded Grow with n=2.0: a whole number"),
        (chain, r"chain returned Trace\(.* as its answer: .* the text of its answer or None"),
        (late, "late returned 5 as its answer"),  # when it is told that there is no more
    ],
)
def test_a_search_that_breaks_the_protocol_is_named(asked, own, said):
    """Bug: a traceback out of the driver, or out of the grader, for what a user's own search did."""
    with pytest.raises(WorkbenchError, match=f"the search {said}"):
        drive(asked(2), own, POLICY, JUDGE, budget=Budget(sampled=1))


def test_an_unknown_score_is_not_a_bad_one(name, asked):
    """Bug: None read as 0, or a crash on it. Chains that nobody scored neither win nor stop the search."""
    if not go(name, asked(1))[0].cost.verifier_calls:
        return
    unknown = Judge(a=None, b=None, **{"1": None, "0": None, "": None, "?": None})
    assert {r.answer for r in go(name, asked(10), verifier=unknown)} == {None}
    half = Judge(a=None, **{"1": 0.9, "0": 0.9})
    for result in go(name, asked(60), verifier=half, aggregate="min"):
        known = [leaf.trace.answer for leaf in result.leaves if None not in leaf.trace.scores and leaf.trace.answer]
        assert result.answer in (known or [None])


def test_two_problems_of_one_id_are_refused(asked):
    """Bug: randomness is drawn by id, so two problems with one id would be one problem twice."""
    with pytest.raises(WorkbenchError, match="share an id"):
        go("majority", asked(1) * 2)


# --- the memo, where it could lie ---------------------------------------------------------------------------------


def test_a_memo_knows_the_prefix(asked):
    """Bug: the path names a node, but a greedy first step and a sampled one have the same path."""

    def sampled_then_grown(root, *, temperature=1.0):
        [first] = yield Grow([root], score=False, temperature=temperature)
        return first.trace.answer or (yield Grow([first], to_end=True, score=False))[0].trace.answer

    memo = Memo()
    for temperature in (1.0, 0.0):
        fresh = drive(asked(60), sampled_then_grown, POLICY, temperature=temperature)
        again = drive(asked(60), sampled_then_grown, POLICY, temperature=temperature, memo=memo)
        assert seen(fresh) == seen(again)


def test_a_memo_knows_its_verifier(asked):
    """Bug: scores lie under the id of a verifier that is gone, and the next one is given that id."""
    memo, judge = Memo(), Judge(a=0.9)
    go("best_of_n", asked(3), verifier=judge, memo=memo)
    gone = id(judge)
    del judge
    gc.collect()
    assert gone not in [id(later) for later in [Judge(a=0.1) for _ in range(5000)]]
    results = go("best_of_n", asked(3), verifier=Judge(a=0.1), memo=memo)
    assert {s.score for r in results for n in r.nodes for s in n.steps if s.text == "a"} == {0.1}


def test_a_memo_serves_one_policy(asked):
    """Bug: another policy is measured on the first one's chains."""
    memo = Memo()
    go("majority", asked(3), memo=memo)
    with pytest.raises(WorkbenchError, match="another policy"):
        go("majority", asked(3), Scripted(TABLE), memo=memo)


# --- the driver ---------------------------------------------------------------------------------------------------


def whole(results):
    """`seen`, and the story of every node."""
    stories = {r.problem.id: [(t.round, t.sampled, t.flops, t.visits) for t in r.tree.values()] for r in results}
    return seen(results), stories, [len(r.rounds) for r in results]


def test_the_window_does_not_matter(name, asked):
    """Bug: a tree that depends on how many problems are held at a time."""
    want = whole(go(name, asked(7)))
    assert all(whole(go(name, asked(7), window=window)) == want for window in (1, 3))
    with pytest.raises(WorkbenchError, match="window=0"):
        go(name, asked(7), window=0)


class Refusing(Scripted):
    """A policy that cannot serve some problems."""

    def __init__(self, *refused):
        super().__init__(TABLE)
        self.refused = refused

    def extend(self, wants, seed=0, sampling=Sampling()):
        if wrong := {w.problem.id: "its prompt is too long" for w in wants if w.problem.id in self.refused}:
            raise ProblemError(wrong)
        return super().extend(wants, seed, sampling)


def test_a_problem_that_the_policy_refuses_does_not_stop_the_others(name, asked):
    """Bug: one prompt longer than the context throws a night's run away, or is graded as a wrong answer in silence."""
    problems = asked(6)
    with pytest.warns(UserWarning, match="2 of 6 problems could not be served, the first: toss/1: .*too long"):
        results = go(name, problems, Refusing("toss/1", "toss/4"))
    assert [r.stop for r in results] == ["done", "error", "done", "done", "error", "done"]
    assert [r.error for r in results if r.stop == "error"] == ["its prompt is too long"] * 2
    assert seen([r for r in results if r.stop == "done"]) == seen(go(name, [problems[i] for i in (0, 2, 3, 5)]))
    with pytest.raises(WorkbenchError, match="toss/0: its prompt is too long"):
        go(name, problems[:2], Refusing("toss/0", "toss/1"))


def test_a_problem_that_the_verifier_fails_on_does_not_stop_the_others(name, asked):
    """Bug: one score of NaN throws a night's run away, or sorts anywhere."""
    if not go(name, asked(1))[0].cost.verifier_calls:
        return

    class Flaky(Judge):
        def score(self, items):
            nan = float("nan")
            return [
                tuple(nan for _ in scores) if problem.id == "toss/1" else scores
                for (problem, _), scores in zip(items, super().score(items), strict=True)
            ]

    problems, flaky = asked(5), Flaky(**JUDGE.scores)
    with pytest.warns(UserWarning, match="1 of 5 problems could not be served, the first: toss/1: Flaky gave"):
        results = go(name, problems, verifier=flaky)
    assert [r.stop for r in results] == ["done", "error", "done", "done", "done"]
    assert "Flaky" in results[1].error and all(r.error is None for r in results if r.stop == "done")
    others = [problems[i] for i in (0, 2, 3, 4)]
    assert seen([r for r in results if r.stop == "done"]) == seen(go(name, others))
    with pytest.raises(WorkbenchError, match="toss/1: Flaky gave"):
        go(name, problems[1:2], verifier=flaky)


def test_a_verifier_may_refuse_a_problem(asked):
    """Bug: a chain too long for the verifier's context ends the run, where one for the policy's does not."""

    class Strict(Judge):
        def score(self, items):
            if any(problem.id == "toss/1" for problem, _ in items):
                raise ProblemError({"toss/1": "the chain is too long to judge"})
            return super().score(items)

    with pytest.warns(UserWarning, match="1 of 3"):
        results = go("best_of_n", asked(3), verifier=Strict(**JUDGE.scores))
    assert [(r.stop, r.error) for r in results][:2] == [("done", None), ("error", "the chain is too long to judge")]


def test_a_budget_that_allows_nothing_says_so(name, asked):
    """Bug: a limit of 0 looks like a search that found nothing."""
    for result in go(name, asked(2), budget=Budget(sampled=0)):
        assert result.stop == "budget" and "allows nothing" in result.error
    assert all(r.error is None for r in go(name, asked(2), budget=Budget(sampled=1)))


def test_a_search_that_asks_for_nothing_for_ever_is_ended(monkeypatch, asked):
    """Bugs: a search that waits for a node which cannot grow, or asks for children that it has, hangs the notebook."""
    monkeypatch.setattr("workbench.search.PATIENCE", 20)

    def waits(root):
        [leaf] = yield Grow([root], to_end=True, score=False)
        while (yield Grow([leaf], score=False)) is not None:
            pass

    def begs(root):
        while True:
            yield Grow([], score=False)

    def repeats(root):
        while True:
            yield Grow([root], 2, score=False)

    for endless in (waits, begs, repeats):
        with pytest.raises(WorkbenchError, match="toss/0: the search asked 20 times in a row for nothing that was new"):
            drive(asked(2), endless, POLICY)


def test_a_search_may_ask_again_for_what_it_has(monkeypatch, asked):
    """Bug: patience ends a search that walks down from the root each time, by nodes that it knows, to something new."""
    monkeypatch.setattr("workbench.search.PATIENCE", 3)

    def walks(root):
        for first in range(6):
            for _ in range(2):  # known, and free
                [child] = yield Grow([root], score=False)
            yield Grow([child], first=first, score=False)
        return "1"

    [result] = drive(asked(1), walks, POLICY)
    assert (result.stop, result.answer, len(result.rounds)) == ("done", "1", 18)


class Mute(Scripted):
    """Writes steps without tokens for one problem."""

    def extend(self, wants, seed=0, sampling=Sampling()):
        chains = super().extend(wants, seed, sampling)
        for want, rows in zip(wants, chains, strict=True):
            if want.problem.id == "toss/1":
                rows[:] = [[replace(c, steps=(*c.steps[:-1], Step("so"))) for c in chain] for chain in rows]
        return chains


def test_a_step_without_tokens_is_named(name, asked):
    """Bug: a policy that writes nothing is asked again for ever; or its mistake ends the problems beside it."""
    with pytest.raises(WorkbenchError, match="toss/1: the policy wrote a step without a token"):
        go(name, asked(2)[1:], Mute(TABLE))
    with pytest.warns(UserWarning, match="1 of 3"):
        results = go(name, asked(3), Mute(TABLE))
    assert [r.stop for r in results] == ["done", "error", "done"]


def test_two_children_of_one_number_are_refused(asked):
    """Bug: the second child silently takes the first one's place, and its tokens are lost or billed to it."""

    def twice(root):
        yield Grow([root], score=False)
        yield Grow([root], score=False, temperature=0.0)

    with pytest.raises(WorkbenchError, match=r"two children have the name \(0,\).*first"):
        drive(asked(20), twice, POLICY)

    def apart(root):
        yield Grow([root], score=False)
        yield Grow([root], score=False, temperature=0.0, first=1)

    assert all(len(r.nodes) == 2 for r in drive(asked(20), apart, POLICY))


SURE = Scripted({(): [("a", 1.0)], ("a",): [("a", 1.0)], ("a", "a"): [("=1", 1.0)]})


def test_a_node_has_a_count_of_its_own(asked):
    """Bug: one count for all nodes, so a particle with three copies grows as many children as one with one."""

    def uneven(root):
        first, second = yield Grow([root], 2)
        grown = yield Grow([first, second], [2, 1])
        return ",".join(str(node.path) for node in grown)

    [result] = drive(asked(1), uneven, SURE, JUDGE)
    assert result.answer == "(0, 0),(0, 1),(1, 0)"
    assert [twig.visits for twig in result.tree.values()] == [1, 1, 0, 0, 0]

    def short(root):
        pair = yield Grow([root], 2)
        yield Grow(pair, [1])

    with pytest.raises(WorkbenchError, match="one count a node"):
        drive(asked(1), short, SURE, JUDGE)


def test_a_number_asked_for_again_is_free(asked):
    """Bug: what was drawn once is drawn or billed twice, so a search that looks again looks dear."""

    def again(root, *, times=1):
        for _ in range(times):
            children = yield Grow([root], 3)
            yield Grow(children[:1], to_end=True)
        return children[0].steps[-1].text

    once, thrice = (drive(asked(3), again, POLICY, JUDGE, times=times) for times in (1, 3))
    assert seen(once) == seen(thrice)
    for r in thrice:
        assert r.cost.policy_calls == (1 if r.nodes[0].finished else 2) and len(r.rounds) == 6


def test_visits_and_rounds_tell_the_story(asked):
    """Bug: a visit counted at the node alone, so the tree's root looks idle; a node without the round it grew in."""

    def story(root):
        [one, two] = yield Grow([root], 2)
        [below] = yield Grow([one], score=False)
        yield Grow([below], score=False)
        yield Grow([one], first=1, score=False)

    [result] = drive(asked(1), story, SURE, JUDGE)
    told = {path: (twig.round, twig.visits) for path, twig in result.tree.items()}
    assert told == {(0,): (1, 3), (1,): (1, 0), (0, 0): (2, 1), (0, 0, 0): (3, 0), (0, 1): (4, 0)}
    asked_for = [(len(g.nodes), g.n, g.first, g.score) for g in result.rounds]
    assert asked_for == [(1, 2, 0, True), (1, 1, 0, False), (1, 1, 0, False), (1, 1, 1, False)]
    assert [t.sampled for t in result.tree.values()] == sorted(t.sampled for t in result.tree.values())
    assert list(result.tree.values())[-1].sampled == result.cost.sampled


def test_a_last_bit_does_not_decide(asked):
    """Bug: two chains that a verifier likes equally are ranked by rounding noise, which depends on the batch."""
    coin = Scripted({(): [("=0", 0.5), ("=1", 0.5)]})

    def answers(one):
        return [r.answer for r in go("best_of_n", asked(40), coin, Judge(**{"0": 0.5, "1": one}), n=4)]

    first = [r.answer for r in go("sampling", asked(40), coin)]
    assert answers(0.5 + 1e-7) == answers(0.5) == answers(0.5 - 1e-7) == first
    assert answers(0.501) != first and answers(0.499) != first


@pytest.mark.parametrize("n", [0, -1])
def test_no_child_at_all_is_refused(asked, n):
    """Bug: n = 0 is a search that ends well and answers nothing."""
    for method in ("majority", "best_of_n", "weighted_vote", "beam"):
        with pytest.raises(WorkbenchError, match=f"n={n}"):
            go(method, asked(2), n=n)
