"""Law tests of every search, and exact values on policies with known probabilities."""

import functools
import gc
import inspect
import itertools
from collections import Counter, defaultdict
from dataclasses import replace

import pytest

from workbench import search
from workbench.format import render_step
from workbench.policies import Sampling, Want
from workbench.policies.scripted import Scripted
from workbench.search import Grow, Memo, drive
from workbench.types import Budget, Node, Step, WorkbenchError

WORDS = {"a": 0.5, "b": 0.3, "=0": 0.2}
TABLE = {(): list(WORDS.items())}
TABLE |= {(x,): [("a", 0.4), ("b", 0.2), ("=1", 0.3), ("=0", 0.1)] for x in "ab"}
TABLE |= {(x, y): [("=1", 0.5), ("=0", 0.3), ("?", 0.2)] for x in "ab" for y in "ab"}  # after "?" a chain is cut
POLICY = Scripted(TABLE)
SEEDLESS = ("greedy",)


class Judge:
    """Scores a step by its text alone; unseen texts get .5."""

    aggregate = "min"

    def __init__(self, **scores):
        self.scores = scores

    def flops(self, prefix, new, head=True):
        return 3.0 * new

    def score(self, items):
        assert all(problem.answer is None for problem, _ in items), "a verifier saw the gold answer"
        return [tuple(self.scores.get(step.text, 0.5) for step in trace.steps) for _, trace in items]


JUDGE = Judge(a=0.9, b=0.4, **{"1": 0.6, "0": 0.7})


def knobs(name, **wanted):
    """Those of the wanted knobs that the search has."""
    return {k: v for k, v in wanted.items() if k in inspect.signature(search.get(name)).parameters}


def go(name, problems, policy=POLICY, verifier=JUDGE, **more):
    return drive(problems, name, policy, verifier, **{"seed": 1, **knobs(name, n=6, width=2), **more})


def seen(results):
    """All that a result holds but seconds."""
    costs = [replace(r.cost, policy_seconds=0.0, verifier_seconds=0.0) for r in results]
    return {r.problem.id: (r.answer, r.nodes, cost, r.stop) for r, cost in zip(results, costs, strict=True)}


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


def test_a_budget_of_flops_counts_the_verifier(asked):
    """Bug: verifier compute is uncounted (in one published table it was 90 % of all)."""
    limit = 150.0
    [free], [judged] = (go(method, asked(1), budget=Budget(flops=limit), n=200) for method in ("majority", "best_of_n"))
    assert free.cost.verifier_flops == 0 and judged.cost.verifier_flops > judged.cost.policy_flops
    for method in search.names():
        [cut] = go(method, asked(1), budget=Budget(flops=limit))
        assert cut.cost.flops < limit + 60  # a child that was begun is finished, and read
    assert go("beam", asked(1), budget=Budget(flops=limit))[0].cost.flops < go("beam", asked(1))[0].cost.flops


def spy(name, log):
    """The search, with every request noted down."""
    inner = search.get(name)

    @functools.wraps(inner)
    def spied(root, **knobs):
        generator, sent, requests = inner(root, **knobs), None, []
        log.append(requests)
        while True:
            try:
                requests.append(generator.send(sent))
            except StopIteration as end:
                return end.value
            sent = yield requests[-1]

    return spied


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


# --- exact values -------------------------------------------------------------------------------------------------

ANSWERS = {"1": 0.4, "0": 0.35, "2": 0.25}
ONE_STEP = Scripted({(): [("=" + answer, p) for answer, p in ANSWERS.items()]})
LIKES = {"1": 0.5, "0": 0.1, "2": 0.7}
N = 800


def share(results, answer="1"):
    return sum(r.answer == answer for r in results) / len(results)


def near(p):
    return pytest.approx(p, abs=3.5 * (p * (1 - p) / N) ** 0.5)


def expected(n, choose):
    """The probability that `choose(answers)` is 1, over all ways to draw n answers."""
    total = 0.0
    for draws in itertools.product(ANSWERS, repeat=n):
        p = 1.0
        for answer in draws:
            p *= ANSWERS[answer]
        total += p * (choose(draws) == "1")
    return total


def by_weight(draws, weight):
    sums = defaultdict(float)  # keeps the order of first sight, and max keeps the first of equals
    for answer in draws:
        sums[answer] += weight[answer]
    return max(sums, key=lambda answer: round(sums[answer], 9))


@pytest.mark.parametrize("n", [1, 3, 4])
def test_majority_by_enumeration(asked, n):
    want = expected(n, lambda draws: by_weight(draws, dict.fromkeys(ANSWERS, 1.0)))
    assert share(go("majority", asked(N), ONE_STEP, n=n)) == near(want)


@pytest.mark.parametrize("n", [2, 4])
def test_best_of_n_by_enumeration(asked, n):
    want = expected(n, lambda draws: max(draws, key=LIKES.get))
    assert want == pytest.approx(0.75**n - 0.35**n)
    assert share(go("best_of_n", asked(N), ONE_STEP, Judge(**LIKES), n=n)) == near(want)


def test_weighted_vote_by_enumeration(asked):
    want = expected(4, lambda draws: by_weight(draws, LIKES))
    others = [expected(4, lambda d: max(d, key=LIKES.get)), expected(4, lambda d: by_weight(d, dict.fromkeys(d, 1.0)))]
    assert all(abs(want - other) > 0.09 for other in others), "the enumeration must tell the methods apart"
    assert share(go("weighted_vote", asked(N), ONE_STEP, Judge(**LIKES), n=4)) == near(want)


def test_greedy_and_sampling_by_their_probabilities(asked):
    assert {r.answer for r in go("greedy", asked(30), ONE_STEP)} == {"1"}
    assert share(go("sampling", asked(N), ONE_STEP)) == near(0.4)


def expected_beam(n, width):
    """Good first steps (.3) lead to 1 with .8, bad ones to 1 with .1; a judge knows good from bad."""
    good, right, total = 0.3, {True: 0.8, False: 0.1}, 0.0
    for k in range(n + 1):  # good ones among the n first steps
        kept = ([True] * k + [False] * (n - k))[: n // width]
        parents = [step for step in kept for _ in range(width)]
        first = sum(p for _, p in _ways(n, k, good))
        for leaves in itertools.product([True, False], repeat=len(parents)):
            p = first
            for parent, one in zip(parents, leaves, strict=True):
                p *= right[parent] if one else 1 - right[parent]
            weight = [0.9 if parent else 0.2 for parent in parents]
            ones = sum(w for w, one in zip(weight, leaves, strict=True) if one)
            zeros = sum(weight) - ones
            total += p * (ones > zeros + 1e-9 or (abs(ones - zeros) < 1e-9 and leaves[0]))
    return total


def _ways(n, k, p):
    for draw in itertools.combinations(range(n), k):
        yield draw, p**k * (1 - p) ** (n - k)


def test_beam_by_enumeration(asked):
    """Bug: keeping `width` beams and growing n / width from each, instead of the other way round."""
    leaf = {True: [("=1", 0.8), ("=0", 0.2)], False: [("=1", 0.1), ("=0", 0.9)]}
    table = Scripted({(): [("good", 0.3), ("bad", 0.7)], ("good",): leaf[True], ("bad",): leaf[False]})
    judge = Judge(good=0.9, bad=0.2, **{"1": 1.0, "0": 1.0})
    assert abs(expected_beam(8, 4) - expected_beam(8, 2)) > 0.09
    for n, width in ((8, 2), (8, 4)):
        assert share(go("beam", asked(N), table, judge, n=n, width=width)) == near(expected_beam(n, width))


def test_beam_keeps_n_over_width_and_grows_width(asked):
    """Snell's definition, counted: n first steps, then n / width beams x width children a round."""
    log = []
    endless = {(): [("a", 0.6), ("b", 0.4)]}
    for depth in range(1, 6):
        for steps in itertools.product("ab", repeat=depth):
            endless[steps] = [("a", 0.6), ("b", 0.4)]
    [result] = drive(asked(1), spy("beam", log), Scripted(endless), JUDGE, n=12, width=3, rounds=4)
    [requests] = log
    assert [(len(r.nodes), r.n) for r in requests] == [(1, 12)] + [(4, 3)] * 4
    assert len(result.nodes) == 12 * 5
    levels = defaultdict(list)
    for node in result.nodes:
        levels[len(node.path)].append(node)
    for request, level in zip(requests[1:], range(1, 5), strict=True):
        kept = sorted(min(n.trace.scores) for n in request.nodes)
        assert kept == sorted(min(n.trace.scores) for n in levels[level])[-4:], "the best are kept"


def test_a_chain_that_closed_is_not_copied(asked):
    """Bug: finished beams copied to fill up n, which inflates their vote."""
    table = Scripted({(): [("=0", 0.5), ("a", 0.5)], ("a",): [("=1", 1.0)]})
    judge = Judge(a=0.9, **{"0": 0.8, "1": 0.5})
    # One good step among four is enough: two leaves of .5 outvote one early finish of .8, but not two copies of it.
    assert share(go("beam", asked(N), table, judge, n=4, width=2)) == near(1 - 0.5**4)


def test_a_chain_that_died_holds_no_place(asked):
    """Bugs: "length" read as finished; a cut chain with a good score pushes living ones out of the beam."""
    table = Scripted({(): [("a", 0.5), ("b", 0.5)], ("b",): [("c", 1.0)], ("b", "c"): [("=1", 1.0)]})
    judge = Judge(a=0.9, b=0.5, c=0.5, **{"": 0.9, "1": 0.5})
    # Two or more a's among four fill the beam and die; one or none leaves room for a b.
    assert share(go("beam", asked(N), table, judge, n=4, width=2)) == near((1 + 4) / 16)


def test_an_unknown_score_ranks_last(asked):
    """Bug: None read as 0, so what nobody judged ranks with what was judged worst."""
    table = Scripted({(): [("a", 0.5), ("b", 0.5)], ("a",): [("=0", 1.0)], ("b",): [("=1", 1.0)]})
    judge = Judge(a=None, b=0.0, **{"1": 0.0})
    assert share(go("beam", asked(N), table, judge, n=4, width=4)) == near(1 - 0.5**4)
