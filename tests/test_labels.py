"""Step labels: each test names the mistake it pins."""

import dataclasses
import itertools
import math
from collections import Counter
from dataclasses import replace
from unittest.mock import ANY

import pytest
import searching

from workbench import labels, tasks
from workbench.policies import Sampling, Want
from workbench.policies.scripted import Scripted
from workbench.types import Labelled, Node, Problem, ProblemError, Step, Trace, WorkbenchError
from workbench.verifiers.oracle import Oracle

# What follows a step is right with the probability behind it, and always opposite to the step's own look.
AFTER = {"good": 0.75, "bad": 0.25, "lost": 0.0}
TABLE = {(): [(word, 1 / 3) for word in AFTER]}
TABLE |= {(word,): [("=1", p), ("=0", 1 - p)] if p else [("=0", 1.0)] for word, p in AFTER.items()}
TABLE |= {("good", "bad"): [("=1", 0.5), ("=0", 0.5)]}
POLICY = Scripted(TABLE)


def test_the_oracle_is_the_tasks_truth():
    p = tasks.get("arithmetic").parse("2+3*4")
    chains = [Trace((Step("3*4=12"), Step("2+12=15"), Step("15", True))), tasks.get("arithmetic").demonstration(p)]
    assert labels.oracle([(p, chain) for chain in chains]) == [[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]


def test_a_task_that_only_people_can_judge_is_named():
    """Bug: an AttributeError of a module, deep inside."""
    for task in ("gsm8k", "math", "prm800k"):
        problem, trace = Problem(f"{task}/7", task, "How many?", "5"), Trace((Step("2+3=5"), Step("5", True)))
        said = f"{task}/7: the task '{task}' has no '%s' .* only people know: take labels from rollouts"
        with pytest.raises(WorkbenchError, match=said % "oracle"):
            labels.oracle([(problem, trace)])
        with pytest.raises(WorkbenchError, match=said % "oracle"):
            labels.audit([Labelled(problem, trace, (1.0, 0.0))])
        with pytest.raises(WorkbenchError, match=said % "correct"):
            labels.corrected(problem, trace, [1.0, 0.0])
        with pytest.raises(WorkbenchError, match=f"{task}/7: the task '{task}' has no step oracle.* trained verifier"):
            Oracle([problem])


def test_rollouts_start_after_the_step(asked):
    """Bug: completions that start before the step they judge give every step its predecessor's label."""
    [problem] = asked(1)
    items = [(problem, Trace((Step(word), Step("1", final=True)))) for word in AFTER]
    items += [(problem, Trace((Step("good"), Step("bad"), Step("0", final=True))))]
    found, _ = labels.monte_carlo(POLICY, items, k=1500, seed=4)
    assert [row[0] for row in found] == pytest.approx([0.75, 0.25, 0.0, 0.75], abs=0.05)
    assert found[3][1] == pytest.approx(0.5, abs=0.05)
    assert [row[-1] for row in found] == [1.0, 1.0, 1.0, 0.0], "the closing answer is checked, not sampled"


def test_hard_labels_ask_whether_any_rollout_succeeds(asked):
    """Bug: soft labels cut to 0 by int(), or hard labels that are the majority's."""
    items = [(p, Trace((Step(word),), "cut")) for p in asked(40) for word in AFTER]
    soft, hard = (labels.monte_carlo(POLICY, items, k=4, seed=1, hard=hard)[0] for hard in (False, True))
    assert [[float(x > 0) for x in row] for row in soft] == hard
    assert {x for row in soft for x in row} == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert sum(row[0] for row in hard[1::3]) > 20, "most steps with four rollouts of .25 are repaired once"


def test_every_rollout_has_noise_of_its_own(asked):
    """Bug: two traces, or two steps, that share their noise: labels that look certain and are one draw."""
    [problem] = asked(1)
    found, _ = labels.monte_carlo(POLICY, [(problem, Trace((Step("good"),), "cut"))] * 200, k=1, seed=1)
    assert sum(row[0] for row in found) == pytest.approx(150, abs=25)
    again, _ = labels.monte_carlo(POLICY, [(problem, Trace((Step("good"),), "cut"))] * 200, k=1, seed=1)
    other, _ = labels.monte_carlo(POLICY, [(problem, Trace((Step("good"),), "cut"))] * 200, k=1, seed=2)
    assert found == again != other


def test_a_rollout_that_does_not_close_is_no_success(asked):
    """Bug: "length" read as finished."""
    [problem] = asked(1)
    item = (problem, Trace((Step("good"),), "cut"))
    assert labels.monte_carlo(POLICY, [item], k=20, sampling=Sampling(1.0, 3, 90))[0] == [[0.0]]
    unfinished = (problem, Trace((Step("good"), Step("1", final=True)), "length"))
    assert labels.monte_carlo(POLICY, [unfinished], k=4)[0][0][1] == 0.0


def test_the_cost_of_labels_is_metered(asked):
    """Bug: labels for free, though they cost more than the training they serve."""
    [problem] = asked(1)
    # Sampled steps hold their tokens; these two are 5 and 4 long. The closing answer costs nothing.
    steps = (Step("good", ids=(1, 2, 3, 4, 5)), Step("bad", ids=(1, 2, 3, 4)), Step("1", final=True, ids=(9,)))
    _, cost = labels.monte_carlo(POLICY, [(problem, Trace(steps))], k=6)
    start = POLICY.prompt_tokens(problem, Node())
    assert cost.prompt == (start + 5) + (start + 9) and cost.policy_calls == 2
    closing = 4  # </reasoning> <assistant> 1 </assistant>
    assert cost.sampled == cost.policy_flops - cost.prompt == 2 * 6 * closing
    assert cost.judged == cost.trained == 0


def test_the_policy_never_sees_the_answer(asked):
    """Bug: a rollout that is told what it should find."""

    class Curious(Scripted):
        def extend(self, wants, seed=0, sampling=None):
            assert all(want.problem.answer is None for want in wants)
            return super().extend(wants, seed)

    found, _ = labels.monte_carlo(Curious(TABLE), [(p, Trace((Step("good"),), "cut")) for p in asked(3)], k=8)
    assert max(row[0] for row in found) > 0


@pytest.mark.parametrize("task", ["arithmetic", "countdown"])
def test_corrections_one_after_another_solve_the_problem(task):
    """Bugs: a correction that leaves the way that earlier steps took; an answer that forgets them."""
    module = tasks.get(task)
    for problem in module.load("train", 20, 3):
        steps = list(module.demonstration(problem).steps[:1])
        while not steps[-1].final:
            steps.append(module.correct(problem, steps))
        assert all(module.oracle(problem, steps)) and module.check(problem, steps[-1].text)


def test_a_corrected_chain_stops_at_its_first_mistake():
    """Bug: what follows a mistake is taught as right, or the mistake itself is."""
    p = tasks.get("arithmetic").parse("2+3*4")
    wrong = Trace((Step("3*4=12"), Step("2+12=15"), Step("15", True)))
    fixed = labels.corrected(p, wrong, [1.0, 0.0, 0.0])
    assert [s.text for s in fixed.steps] == ["3*4=12", "2+12=14"] and fixed.answer is None
    assert labels.oracle([(p, fixed)]) == [[1.0, 1.0]]
    wrong_close = Trace((Step("3*4=12"), Step("2+12=14"), Step("15", True)))
    assert [s.text for s in labels.corrected(p, wrong_close, [1, 1, 0]).steps][-1] == "14"
    right = tasks.get("arithmetic").demonstration(p)
    assert labels.corrected(p, right, [1.0] * 3) is right


# --- rollouts, as labelled chains ---


class Picky(Scripted):
    """Refuses the problems of `bad` once it has served `after` calls; notes every call down."""

    def __init__(self, table, bad=(), after=0):
        super().__init__(table)
        self.bad, self.after, self.calls = set(bad), after, []

    def extend(self, wants, seed=0, sampling=Sampling()):
        assert all(want.problem.answer is None for want in wants), "a policy saw the gold answer"
        if len(self.calls) >= self.after and (bad := self.bad & {want.problem.id for want in wants}):
            raise ProblemError({name: "too long" for name in bad})
        drawn = super().extend(wants, seed, sampling)
        self.calls.append(list(zip(wants, drawn, strict=True)))
        return drawn


def bare(cost):
    return replace(cost, policy_seconds=0.0, verifier_seconds=0.0)


def words(chain):
    return [step.text for step in chain.trace.steps]


def test_rollouts_are_the_monte_carlo_labels(asked):
    """Bug: two pieces that draw rollouts, of which one is mended later; counts that cannot be had back."""
    items = [(p, Trace((Step(word), Step("1", final=True)))) for p in asked(20) for word in AFTER]
    soft, cost = labels.monte_carlo(POLICY, items, k=7, seed=3)
    made = labels.rollouts(POLICY, items, k=7, seed=3)
    assert [list(chain.labels) for chain in made.chains] == soft and bare(made.cost) == bare(cost)
    assert [(chain.problem, chain.trace) for chain in made.chains] == items and made.refused == {}
    assert all(float(round(x * 7)) / 7 == x for chain in made.chains for x in chain.labels)
    empty = labels.rollouts(POLICY, [(items[0][0], Trace((), "cut"))], k=2)
    assert empty.chains[0].labels == () and labels.rollouts(POLICY, []).chains == []
    with pytest.raises(WorkbenchError, match="k=0"):
        labels.rollouts(POLICY, items, k=0)


def test_a_refused_problem_changes_nothing_for_the_others(asked):
    """Bug: one prompt over the context that costs all labels, or that shifts the noise of those behind it."""
    items = [(p, Trace((Step(word),), "cut")) for p in asked(9) for word in AFTER]
    whole = labels.rollouts(POLICY, items, k=5, seed=1)
    with pytest.warns(UserWarning, match="2 of 9 problems could not be served, the first: toss/[05]: too long"):
        some = labels.rollouts(Picky(TABLE, {"toss/0", "toss/5"}), items, k=5, seed=1)
    assert some.chains == [chain for chain in whole.chains if chain.problem.id not in some.refused]
    assert some.refused == {"toss/0": "too long", "toss/5": "too long"}
    with pytest.raises(ProblemError):
        labels.rollouts(Picky(TABLE, {p.id for p, _ in items}), items)
    with pytest.raises(ProblemError):
        labels.monte_carlo(Picky(TABLE, {"toss/0"}), items)


def test_a_gold_answer_that_cannot_be_read_costs_its_own_problem_alone(monkeypatch):
    """Bug: one bad gold answer destroyed a whole labelling job, after every rollout had been paid for."""

    class Counting(Scripted):
        def extend(self, wants, seed=0, sampling=None):
            self.asked = getattr(self, "asked", []) + [want.problem.id for want in wants]
            return super().extend(wants, seed, sampling)

    policy = Counting({(): [("x", 1.0)], ("x",): [(r"=\sqrt{4}", 0.5), ("=3", 0.5)]})
    good, bad, none = (Problem(f"math/{a}", "math", f"What is {a}?", a) for a in ("2", "10^-3", None))
    trace = Trace((Step("x"), Step("2", True)))
    alone = labels.rollouts(policy, [(good, trace)], k=4)
    policy.asked = []
    with pytest.warns(
        UserWarning, match=r"2 of 3 problems could not be served, the first: math/10\^-3: .* cannot be read"
    ):
        made = labels.rollouts(policy, [(good, trace), (bad, trace), (none, trace)], k=4)
    assert made.chains == alone.chains and made.refused.keys() == {bad.id, none.id} and {*policy.asked} == {good.id}
    with pytest.raises(ProblemError, match="cannot be read"):
        labels.monte_carlo(policy, [(good, trace), (bad, trace)], k=4)
    with pytest.warns(UserWarning, match="1 of 2"):
        found = labels.omega(policy, [good, bad], labels.Omega(k=4))
    assert found.refused.keys() == {bad.id} and found.chains == labels.omega(policy, [good], labels.Omega(k=4)).chains
    assert {*policy.asked} == {good.id}, "it is told before it is paid for"

    def late(problem, trace, right=labels.right_answer):  # readable beside a number only
        if problem.id == bad.id and trace.answer != "0":
            raise WorkbenchError("too late")
        return right(problem, trace)

    monkeypatch.setattr(labels, "right_answer", late)
    monkeypatch.setattr(labels, "_uncheckable", lambda problems: {})
    policy.asked = []
    with pytest.warns(UserWarning, match="too late"):
        made = labels.rollouts(policy, [(good, trace), (bad, trace)], k=4)
    assert made.chains == alone.chains and policy.asked == [good.id, bad.id], "nothing is drawn twice"
    with pytest.warns(UserWarning, match="too late"):
        assert labels.omega(policy, [good, bad], labels.Omega(k=4)).chains == found.chains


@pytest.mark.parametrize("problems", [{"another": "is strange"}, {}])
def test_a_refusal_of_nothing_that_was_asked_is_an_error(asked, problems):
    """Bug: asking the same again for ever."""

    class Strange(Scripted):
        def extend(self, wants, seed=0, sampling=None):
            raise ProblemError(problems)

    for make in (labels.omega, lambda policy, qs: labels.rollouts(policy, [(q, Trace((Step("good"),))) for q in qs])):
        with pytest.raises(ProblemError):
            make(Strange(TABLE), asked(2))


# --- OmegaPRM ---


def slip(n, error):
    """Chains of `n` steps that go wrong at step `error` half of the time, and never come back."""
    table = {tuple(f"s{i}" for i in range(1, t)): [(f"s{t}", 1.0)] for t in range(1, error)}
    good = tuple(f"s{i}" for i in range(1, error))
    if error == n:
        return table | {good: [("=1", 0.5), ("=0", 0.5)]}
    table[good] = [("right", 0.5), (f"x{error}", 0.5)]
    table[*good, "right"] = [("=1", 1.0)]
    for t in range(error, n):
        so_far = (*good, *(f"x{i}" for i in range(error, t + 1)))
        table[so_far] = [(f"x{t + 1}", 1.0)] if t + 1 < n else [("=0", 1.0)]
    return table


def test_omega_finds_the_first_error_as_the_paper_draws_it(asked):
    """Fig. 2b, 8 steps, the 7th wrong: looks at 4, 6 and 7. Bug: off by one, or rollouts that nobody needs."""
    policy = Picky(slip(8, 7))
    made = labels.omega(policy, asked(1), seed=2)
    [chain] = made.chains
    assert [len(want.node.steps) for call in policy.calls for want, _ in call] == [0, 4, 6, 7]
    assert all(want.n == 8 and want.to_end for call in policy.calls for want, _ in call)
    assert made.cost.policy_calls == 4
    assert words(chain) == [*(f"s{i}" for i in range(1, 7)), "x7"] and chain.trace.stop == "cut"
    share = [sum(labels.right_answer(chain.problem, c[-1].trace) for c in drawn) / 8 for [(_, drawn)] in policy.calls]
    assert chain.labels == (None, None, None, share[1], None, share[2], 0.0) and share[3] == 0 < min(share[1:3])
    assert made.cost.sampled == sum(len(n.steps[-1].ids) for [(_, drawn)] in policy.calls for c in drawn for n in c)
    assert made.cost.prompt == sum(policy.prompt_tokens(want.problem, want.node) for [(want, _)] in policy.calls)
    assert made.cost.policy_flops == made.cost.prompt + made.cost.sampled


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13, 21, 32])
def test_a_binary_search_takes_the_logarithm(asked, n):
    """Bug: a search that is linear, or that misses an error in a corner."""
    for error in {1, 2, n // 3, n // 2, n // 2 + 1, n - 1, n} & {*range(1, n + 1)}:
        policy = Scripted(slip(n, error))
        made = labels.omega(policy, asked(1), labels.Omega(k=16))
        [(problem, trace, marks)] = made.chains
        assert len(trace.steps) == error and labels.first_error(marks) == error - 1
        assert trace.stop == ("answer" if error == n else "cut")
        assert made.cost.policy_calls <= 1 + math.ceil(math.log2(n))  # 1: the question itself
        wrong = [*(f"s{i}" for i in range(1, error)), *(f"x{i}" for i in range(error, n))]
        every = Trace((*map(Step, wrong), Step("0", final=True)))
        assert labels.monte_carlo(policy, [(problem, every)], k=1)[1].policy_calls == n - 1


def random_table(rng):
    """A policy over a few words, up to five steps: what stands where is drawn, but never what is right."""
    table = {}

    def fill(path):
        if len(path) == 5:
            choices = ["=1", "=0"]
        else:
            choices = [*rng.sample(["a", "b", "l" * 20, "c"], 2), "=1", "=0", "?"][: rng.randint(2, 5)]
        weights = [rng.random() + 0.05 for _ in choices]
        table[path] = [(line, w / sum(weights)) for line, w in zip(choices, weights, strict=True)]
        for line in choices:
            if not line.startswith("=") and line != "?":
                fill((*path, line))

    fill(())
    return table


def slow_omega(policy, problem, use, seed):
    """One problem, as the paper tells it, everything looked up anew: an independent specification."""
    prefix = lambda steps: [(s.text, s.final) for s in steps]  # noqa: E731
    estimates, searched, found, calls = [], [], [], 0

    def estimate(node):
        nonlocal calls
        for steps, drawn in estimates:
            if steps == prefix(node.steps):
                return drawn
        calls += 1
        want = Want(problem.blind(), node, use.k, True, 1 if node.steps else 0)
        ends = policy.extend([want], tasks.digest("omega", seed) >> 1)[0]
        estimates.append((prefix(node.steps), [(chain, chain[-1].trace.answer == "1") for chain in ends]))
        return estimates[-1][1]

    def mc(drawn):
        return sum(good for _, good in drawn) / len(drawn)

    def bisect(chain, low, high):  # the error is one of the steps low..high of the chain, counted from 1
        if low == high:
            return low
        middle = (low - 1 + high) // 2
        if mc(estimate(chain[middle - 1])) > 0:
            return bisect(chain, middle + 1, high)
        return bisect(chain, low, middle)

    estimate(Node())
    for _ in range(use.searches):
        pool, names = [], []
        for steps, drawn in estimates:
            for chain, good in drawn:
                whole = prefix(chain[-1].steps)
                if 0 < mc(drawn) < 1 and not good and chain[-1].trace.answer is not None and whole not in names:
                    names.append(whole)
                    length = sum(len(node.steps[-1].ids) for node in chain)
                    visits = sum(state == steps for state, _ in searched)
                    q = use.alpha ** (1 - mc(drawn)) * use.beta ** (length / use.length)
                    u = use.c_puct * len(searched) ** 0.5 / (1 + visits)
                    pool.append((q + u, steps, whole, chain))
        pool = [row for row in pool if row[2] not in [whole for _, whole in searched]]
        if not pool:
            break
        _, steps, whole, chain = max(pool, key=lambda row: row[0])
        error = chain[bisect(chain, 1, len(chain)) - 1]
        searched.append((steps, whole))
        if error.steps not in [node.steps for node in found]:
            found.append(error)
    rows = []
    for node in found:
        known = {t: mc(drawn) for s, drawn in estimates for t in [len(s)] if t and s == prefix(node.steps[:t])}
        if node.finished:
            known[len(node.steps)] = 0.0
        rows.append((node.steps, node.trace.stop, [known.get(t + 1) for t in range(len(node.steps))]))
    return rows, calls


USES = [labels.Omega(), labels.Omega(k=3), labels.Omega(k=4, searches=3, length=20, beta=0.3, c_puct=2.0)]


@pytest.mark.parametrize("use", USES)
def test_omega_agrees_with_a_slow_specification(asked, use):
    """Bug: a stale pool, a visit to the wrong state, Q of a chain in place of a rollout, labels that were replaced."""
    seen = 0
    for n, problem in enumerate(asked(40)):
        policy = Scripted(random_table(tasks.rng("table", n)))
        made = labels.omega(policy, [problem], use, seed=n)
        rows, calls = slow_omega(policy, problem, use, n)
        assert [(c.trace.steps, c.trace.stop, list(c.labels)) for c in made.chains] == rows
        assert made.cost.policy_calls == calls
        seen += len(rows)
    assert seen > 30


def test_what_a_rollout_is_worth():
    """Eqs. 2 and 3 by hand. Bug: alpha to the MC, a length that is not divided, a square root over both."""
    use = labels.Omega()
    assert (use.k, use.searches, use.alpha, use.beta, use.length, use.c_puct) == (8, 100, 0.5, 0.9, 500, 0.125)
    assert use.worth(1.0, 0, 0, 0) == 1.0
    assert use.worth(0.5, 0, 0, 0) == pytest.approx(math.sqrt(0.5))
    assert use.worth(0.5, 1000, 0, 0) == pytest.approx(math.sqrt(0.5) * 0.81)
    assert use.worth(1.0, 0, 3, 16) == pytest.approx(1 + 0.125 * 4 / 4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        use.k = 3
    for bad in ({"k": 0}, {"alpha": 0}, {"beta": 1.5}, {"length": 0}, {"c_puct": -1}, {"searches": -1}):
        with pytest.raises(WorkbenchError):
            labels.Omega(**bad)


def test_short_rollouts_of_a_state_go_first(asked):
    """Bug: the length factor left out, or turned round."""
    wordy = "l" * 30
    policy = Scripted({(): [("=1", 0.4), ("=0", 0.3), (wordy, 0.3)], (wordy,): [("=0", 1.0)]})
    orders = {}
    for beta in (0.9, 1.0):
        found = [labels.omega(policy, [p], labels.Omega(beta=beta, length=10)).chains for p in asked(40)]
        orders[beta] = {tuple(words(chain)[0] for chain in chains) for chains in found if len(chains) == 2}
    assert orders == {0.9: {("0", wordy)}, 1.0: {("0", wordy), (wordy, "0")}}


def test_exploration_turns_to_the_state_that_was_searched_less(asked):
    """By hand: Q is 1 for all, so U alone decides; with two states it takes them in turns, without it the older one's
    rollouts first."""
    letters = "abcdefghijkl"
    table = {(): [("s", 1.0)], ("s",): [("=1", 0.4), *((x, 0.05) for x in letters)]}
    table |= {("s", x): [("=0", 1.0)] for x in letters}
    turns = 0
    for problem in asked(30):
        for c in (0.125, 0.0):
            policy = Picky(table)
            made = labels.omega(policy, [problem], labels.Omega(alpha=1, beta=1, c_puct=c))
            drawn = {len(w.node.steps): chains for call in policy.calls for w, chains in call if len(w.node.steps) < 2}
            wrong = [[ch[-1].steps[1].text for ch in drawn.get(t, ()) if ch[-1].trace.answer == "0"] for t in (0, 1)]
            old = list(dict.fromkeys(wrong[0]))
            new = [x for x in dict.fromkeys(wrong[1]) if x not in old]
            if not made.chains or len(wrong[1]) == 8:  # no error, or taken to be before any letter
                continue
            order = [words(chain)[1] for chain in made.chains]
            if c == 0:
                assert order == old + new
            else:
                both = min(len(old), len(new))
                paired = [x for pair in zip(old, new, strict=False) for x in pair]
                assert order == paired + old[both:] + new[both:]
                turns += both > 1
    assert turns > 5


def test_a_rollout_is_no_witness_in_its_own_case(asked):
    """Bug: the first rollout from a state inside a wrong rollout has that rollout's noise, so it is wrong again: with
    two rollouts a state worth .5 is given .25."""
    table = {(): [("s", 1.0)], ("s",): [("t", 1.0)], ("s", "t"): [("=1", 0.5), ("=0", 0.5)]}
    policy = Picky(table)
    labels.omega(policy, asked(600), labels.Omega(k=2))
    inner = [chain[-1].trace.answer == "1" for call in policy.calls for w, d in call if w.node.steps for chain in d]
    assert len(inner) > 400 and sum(inner) / len(inner) == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize(
    "table, sampling",
    [
        ({(): [("=1", 1.0)]}, Sampling()),
        ({(): [("=0", 1.0)]}, Sampling()),
        ({(): [("on", 1.0)], ("on",): [("on", 1.0)]}, Sampling()),  # cut
        (slip(6, 4), Sampling(chain_tokens=4)),  # length
        (slip(6, 4), Sampling(temperature=0)),  # all rollouts alike
    ],
)
def test_a_pool_of_nothing_ends_after_one_estimate(asked, table, sampling):
    """Bug: a search for the error of a right chain, or an endless one."""
    made = labels.omega(Scripted(table), asked(3), sampling=sampling)
    assert made.chains == [] and made.cost.policy_calls == 3
    assert labels.omega(Scripted(table), []).chains == []


def test_a_rollout_that_did_not_close_is_no_wrong_answer(asked):
    """Bug: a chain that ran out of tokens is told to have an error, which is its last right step."""
    table = {(): [("=1", 0.5), ("so", 0.5)], ("so",): [("so", 1.0)]}
    made = labels.omega(Scripted(table), asked(5))
    assert made.chains == [] and made.cost.policy_calls == 5


def test_omega_is_a_function_of_problem_and_seed(asked):
    """Bug: labels that depend on the batch or on the order of problems; costs that do not add up; a call a problem."""
    table, problems = random_table(tasks.rng("table", "batch")), asked(16)
    policy = Picky(table)
    whole = labels.omega(policy, problems, seed=4)
    rounds = len(policy.calls)
    alone = [labels.omega(Scripted(table), [p], seed=4) for p in problems]
    assert whole.chains == [chain for made in alone for chain in made.chains] and whole.chains
    assert bare(whole.cost) == bare(sum(made.cost for made in alone))
    assert rounds == max(made.cost.policy_calls for made in alone)
    back = labels.omega(Scripted(table), problems[::-1], seed=4)
    assert sorted(back.chains, key=str) == sorted(whole.chains, key=str)
    assert labels.omega(Scripted(table), problems, seed=5).chains != whole.chains
    with pytest.raises(WorkbenchError, match="share an id"):
        labels.omega(policy, [problems[0], problems[0]])


def test_chains_of_a_problem_agree_on_what_they_share(asked):
    """Bug: a prefix with two labels; a chain twice; a label outside 0-1; a chain that goes on behind its error."""
    shared = 0
    for n in range(6):
        policy = Scripted(random_table(tasks.rng("table", "shared", n)))
        chains = labels.omega(policy, asked(12), labels.Omega(searches=12), seed=n).chains
        known = {}
        for problem, trace, marks in chains:
            assert len(marks) == len(trace.steps) and marks[-1] == 0.0
            assert all(x is None or 0 <= x <= 1 for x in marks)
            for t, mark in enumerate(marks):
                name = problem.id, tuple(step.text for step in trace.steps[: t + 1]), trace.steps[t].final
                shared += name in known
                assert known.setdefault(name, mark) == mark
        assert len({(c.problem.id, tuple(words(c)), c.trace.stop) for c in chains}) == len(chains)
    assert shared > 50


def test_the_limit_of_searches_is_kept(asked):
    """Bug: a limit on something else; a smaller one that finds other errors first."""
    policy = Scripted(random_table(tasks.rng("table", "limit")))
    found = {n: labels.omega(policy, asked(12), labels.Omega(searches=n)) for n in (0, 1, 2, 100)}
    per = {n: Counter(c.problem.id for c in made.chains) for n, made in found.items()}
    assert found[0].chains == [] and found[0].cost.policy_calls == 12
    assert max(per[1].values()) == 1 and max(per[2].values()) == 2 < max(per[100].values())
    for problem in asked(12):
        two, all_ = ([words(c) for c in found[n].chains if c.problem.id == problem.id] for n in (2, 100))
        assert all_[: len(two)] == two


def test_omega_goes_on_without_a_problem_that_is_refused(asked):
    """Bug: one bad problem is fatal to the rest; what was paid for before it was refused is thrown away."""
    table, problems = random_table(tasks.rng("table", "batch")), asked(16)
    whole = labels.omega(Scripted(table), problems, seed=4)
    some = {c.problem.id for c in whole.chains[:8]}
    for after in (0, 1, 4):
        with pytest.warns(UserWarning, match="could not be served"):
            made = labels.omega(Picky(table, some, after), problems, seed=4)
        kept = [c for c in whole.chains if c.problem.id not in made.refused]
        assert [c for c in made.chains if c.problem.id not in made.refused] == kept and kept
        assert set(made.refused) <= some and made.refused
        partial = [c for c in made.chains if c.problem.id in made.refused]
        assert bool(partial) == (after > 1)
        assert {(c.problem.id, *words(c)) for c in partial} <= {(c.problem.id, *words(c)) for c in whole.chains}
    with pytest.raises(ProblemError):
        labels.omega(Picky(table, {p.id for p in problems}), problems)


def test_omega_on_a_model(policy, sums, monkeypatch):
    """Bug: prefixes, noise or token counts that a scripted policy forgives."""
    even = lambda problem, trace: (trace.answer or "")[-1:] in tuple("02468")  # noqa: E731
    monkeypatch.setattr(labels, "right_answer", even)  # it cannot reckon
    whole = labels.omega(policy, sums, labels.Omega(k=4, searches=5), seed=1)
    alone = [labels.omega(policy, [p], labels.Omega(k=4, searches=5), seed=1) for p in sums]
    texts = [(c.problem.id, words(c), c.trace.stop, c.labels) for c in whole.chains]
    assert texts == [(c.problem.id, words(c), c.trace.stop, c.labels) for m in alone for c in m.chains]
    assert len(whole.chains) > 10 and any(len(c.labels) > 2 for c in whole.chains)
    assert {x for c in whole.chains for x in c.labels} <= {None, 0.0, 0.25, 0.5, 0.75, 1.0}
    assert whole.cost.sampled == sum(m.cost.sampled for m in alone) > 0
    assert whole.cost.policy_flops == pytest.approx(sum(m.cost.policy_flops for m in alone))


# --- consensus ---

LABELLED = {  # the scores of searching.JUDGE: a .9, b .4, "1" .6, "0" .7
    ("a", "a", "1"): (1.0, 0.5, 1.0),  # neither sees an error
    ("a", "b", "0"): (0.5, 0.0, 0.0),  # both see it at b
    ("b", "a", "0"): (0.5, 0.0, 0.0),  # one step apart
    ("a", "a", "0"): (1.0, 0.75, 0.0),  # the judge sees none
    ("b", "b", "1"): (0.25, 0.25, 1.0),  # the labels see none, unless cut at one half
}


def labelled(problem):
    chain = lambda texts: Trace((*map(Step, texts[:-1]), Step(texts[-1], final=True)))  # noqa: E731
    return [Labelled(problem, chain(texts), marks) for texts, marks in LABELLED.items()]


def test_consensus_keeps_what_both_say(asked):
    """Bug: agreement on whether there is an error in place of where; labels kept behind it."""
    chains = labelled(asked(1)[0])
    made, kept = labels.consensus(searching.POLICY, chains, searching.JUDGE)
    assert [c.labels for c in made.chains] == [(1.0, 0.5, 1.0), (0.5, 0.0, None)] and kept == 2 / 5
    assert [c.trace for c in made.chains] == [chains[0].trace, chains[1].trace]
    halves, kept = labels.consensus(searching.POLICY, chains, searching.JUDGE, cut=0.5, hard=True)
    assert [(words(c), c.labels) for c in halves.chains] == [
        (["a", "a", "1"], (1.0, 1.0, 1.0)),
        (["a", "b", "0"], (1.0, 0.0, None)),
        (["b", "b", "1"], (0.0, None, None)),
    ]
    assert kept == 3 / 5
    strict, kept = labels.consensus(searching.POLICY, chains, searching.JUDGE, threshold=1.0)
    assert strict.chains == [] and kept == 0.0, "a judge that sees an error in every first step"
    near = searching.Judge(a=0.5 - 1e-9, b=0.4)
    made, _ = labels.consensus(searching.POLICY, chains[:1], near)
    assert made.chains == chains[:1], "the last bits of a score depend on the batch, and must not decide"


def test_consensus_bills_a_judge_what_it_spent(asked):
    """Bug: a judge that samples critiques is billed as if it had read the chains once."""
    judge, chains = searching.Judge(a=0.9, b=0.4), labelled(asked(1)[0])
    read = labels.consensus(searching.POLICY, chains, judge)[0].cost
    judge.spent = [[labels.Cost(judged=100, verifier_calls=4)] * 3] * len(chains)
    spent = labels.consensus(searching.POLICY, chains, judge)[0].cost
    assert (spent.judged, spent.verifier_calls) == (1500, 60) and 0 < read.judged < 1500
    none = Labelled(asked(1)[0], Trace((), "cut"), ())
    assert labels.consensus(searching.POLICY, [none], judge)[0].cost.judged == 0, "the last call's is not this one's"


def test_consensus_passes_over_what_nobody_said(asked):
    """Bug: None read as 0; a share of nothing; chains without a label counted as disagreement."""
    [problem], none = asked(1), Labelled(asked(1)[0], Trace((Step("a"),), "cut"), (None,))
    assert labels.consensus(searching.POLICY, [none, Labelled(problem, Trace((), "cut"), ())], searching.JUDGE) == (
        labels.Made([], labels.Cost(verifier_seconds=ANY), {}),
        None,
    )
    sparse = Labelled(problem, Trace((Step("a"), Step("a"), Step("b")), "cut"), (None, 0.5, 0.0))
    made, kept = labels.consensus(searching.POLICY, [none, sparse], searching.JUDGE, hard=True)
    assert [c.labels for c in made.chains] == [(None, 1.0, 0.0)] and kept == 1.0
    silent = searching.Judge(a=None, b=None)
    assert labels.consensus(searching.POLICY, [sparse], silent)[1] == 0.0


def test_the_oracle_can_be_the_judge():
    """Also: the judge is handed problems without their answers."""
    p = tasks.get("arithmetic").parse("2+3*4")
    lucky = Trace((Step("2+3=5"), Step("2+12=14"), Step("14", final=True)))
    right, judge = tasks.get("arithmetic").demonstration(p), Oracle([p])
    made, kept = labels.consensus(POLICY, [Labelled(p, lucky, (0.1, 1.0, 1.0)), Labelled(p, right, (1.0,) * 3)], judge)
    assert [c.trace for c in made.chains] == [right] and kept == 0.5
    assert made.cost.verifier_flops == 0 and made.cost.verifier_calls == 2


def test_what_a_judge_reads_is_billed_as_a_search_bills_it(asked):
    """Bug: a verifier whose compute nobody counts."""
    [result] = searching.go("best_of_n", asked(1), n=1)
    [leaf] = result.leaves
    chain = Labelled(asked(1)[0], leaf.trace, (1.0,) * len(leaf.steps))
    one, _ = labels.consensus(searching.POLICY, [chain], searching.JUDGE)
    spent = ("judged", "verifier_calls", "verifier_flops")
    assert [getattr(one.cost, x) for x in spent] == [getattr(result.cost, x) for x in spent]
    two, _ = labels.consensus(searching.POLICY, [chain, chain], searching.JUDGE)
    assert bare(two.cost) == bare(one.cost + one.cost)
    assert one.cost.sampled == one.cost.prompt == one.cost.policy_flops == 0


def test_a_judge_that_fails_on_one_problem_judges_the_others(asked):
    """Bug: NaN that agrees with nothing and is counted as disagreement; one long chain that is fatal."""

    class Failing(searching.Judge):
        def score(self, items):
            if any(problem.id == "toss/0" for problem, _ in items):
                raise ProblemError({"toss/0": "too long"})
            odd = {"toss/1": math.nan, "toss/2": 1.5}
            return [(odd.get(p.id, 0.9),) * (len(t.steps) - (p.id == "toss/3")) for p, t in items]

    rows = [Labelled(p, Trace((Step("a"), Step("a")), "cut"), (1.0, 1.0)) for p in asked(6) for _ in range(2)]
    with pytest.warns(UserWarning, match="4 of 6 problems could not be served, the first: toss/0: too long"):
        made, kept = labels.consensus(searching.POLICY, rows, Failing())
    assert made.chains == rows[8:] and kept == 1.0 and made.cost.verifier_calls == 4
    assert {"toss/1", "toss/2", "toss/3"} < made.refused.keys() and "not a number in 0-1" in made.refused["toss/1"]
    with pytest.raises(ProblemError):
        labels.consensus(searching.POLICY, rows[:4], Failing())


# --- audit ---


@pytest.mark.parametrize("cut", [0.0, 0.3, 0.5, 1.0])
def test_fewer_rollouts_are_counted_out_exactly(cut):
    """Against every choice there is. Bug: 1 - (1 - c/n)^k, draws with replacement, a half that is rounded."""
    for k in range(1, 8):
        for right in range(k + 1):
            drawn = [1] * right + [0] * (k - right)
            for size in range(1, k + 1):
                called = [sum(x) == 0 or sum(x) / size < cut for x in itertools.combinations(drawn, size)]
                assert labels.called_wrong(right, k, size, cut) == sum(called) / len(called)
    for bad in ((3, 2, 1), (-1, 2, 1), (1, 2, 3), (1, 2, 0)):
        with pytest.raises(WorkbenchError):
            labels.called_wrong(*bad)


SUM = tasks.get("arithmetic").parse("2+3*4")


def worked(*texts, marks, stop="answer"):
    steps = (*map(Step, texts[:-1]), Step(texts[-1], final=True)) if stop == "answer" else tuple(map(Step, texts))
    return Labelled(SUM, Trace(steps, stop), marks)


def test_first_errors_of_fewer_rollouts_against_every_choice():
    """Every choice of 2 of 4 rollouts at every step of a chain, at once. Bug: chances of steps that are not multiplied,
    an error found behind a false alarm."""
    counts = {"wrong at 2": ("3*4=12", "2+12=15", "15", (1, 2, 0)), "right": ("3*4=12", "2+12=14", "14", (2, 1, 4))}
    for *texts, rights in counts.values():
        chain = worked(*texts, marks=tuple(r / 4 for r in rights))
        truth = labels.oracle([(SUM, chain.trace)])[0]
        for name, cut in labels.CUTS.items():
            choices = [list(itertools.combinations([1] * r + [0] * (4 - r), 2)) for r in rights]
            hits = [
                labels.first_error([sum(x) / 2 for x in choice], cut) == labels.first_error(truth)
                for choice in itertools.product(*choices)
            ]
            [row] = labels.audit([chain], k=4, ks=[2], cuts={name: cut}).rows
            assert row["first_error"] == pytest.approx(sum(hits) / len(hits))
            assert row["located" if 0.0 in truth else "cleared"] == row["first_error"]


AUDITED = [
    worked("3*4=12", "2+12=14", "14", marks=(1.0, 0.25, 1.0)),  # right; soft calls its second step wrong
    worked("3*4=12", "2+12=15", "15", marks=(1.0, 0.5, 0.0)),  # wrong at 2; both call that right
    worked("2+3=5", "5*4=20", "20", marks=(0.0, 0.75, 0.0)),  # wrong at 1; both see it
    worked("2+3=5", "2+12=14", "14", marks=(0.0, 1.0, 1.0)),  # the same step, which counts once
    worked("3*4=13", marks=(0.25,), stop="cut"),  # wrong at 1; hard calls it right
    worked("3*4=14", marks=(None,), stop="cut"),  # nobody said
]


def test_an_audit_by_hand():
    """Bug: positives and negatives the wrong way round; steps behind the first error, or the closing answer, counted;
    a shared step counted twice; a missing label read as 0."""
    rows, depths, steps = labels.audit(AUDITED)
    hard, soft = rows
    same = {"k": None, "steps": 5, "right": 2, "wrong": 3, "chains": 5, "chains_wrong": 4}
    want = {"label": "hard", "agree": 3, "false_positive": 2, "false_negative": 0, "located": 2, "cleared": 1}
    assert hard == {**same, **want, "first_error": 3, "error": {SUM.id: 2 / 5}}
    want = {"label": "soft", "agree": 3, "false_positive": 1, "false_negative": 1, "located": 3, "cleared": 0}
    assert soft == {**same, **want, "first_error": 3, "error": {SUM.id: 2 / 5}}
    assert depths == [
        {"label": "hard", "depth": 1, "right": 1, "wrong": 2, "false_positive": 1, "false_negative": 0},
        {"label": "hard", "depth": 2, "right": 1, "wrong": 1, "false_positive": 1, "false_negative": 0},
        {"label": "soft", "depth": 1, "right": 1, "wrong": 2, "false_positive": 0, "false_negative": 0},
        {"label": "soft", "depth": 2, "right": 1, "wrong": 1, "false_positive": 1, "false_negative": 1},
    ]
    assert [(s["chain"], s["depth"], s["truth"], s["label"]) for s in steps] == [
        (0, 1, 1.0, 1.0),
        (0, 2, 1.0, 0.25),
        (1, 2, 0.0, 0.5),
        (2, 1, 0.0, 0.0),
        (4, 1, 0.0, 0.25),
    ]


def test_an_audit_at_every_k():
    """The full k gives the whole counts. Bug: a row that is off by the last k; sizes that are no powers of two."""
    whole, counted = labels.audit(AUDITED), labels.audit(AUDITED, k=4)
    last = [{**row, "k": None} for row in counted.rows if row["k"] == 4]
    assert last == whole.rows and counted.depths == whole.depths and counted.steps == whole.steps
    assert [row["k"] for row in counted.rows] == [1, 2, 4] * 2
    assert [row["k"] for row in labels.audit(AUDITED, k=12).rows] == [1, 2, 4, 8, 12] * 2
    one = counted.rows[0]  # 3/4 + 0 are called wrong, 2/4 + 0 + 1/4 right
    assert (one["false_negative"], one["false_positive"]) == (0.75, 0.75) and one["agree"] == 3.5
    assert one["error"] == {SUM.id: pytest.approx(1.5 / 5)}


def test_an_audit_says_what_fewer_rollouts_would_have_said(asked):
    """Against labels that were drawn anew with fewer. Bug: an expectation that is exact and of another thing."""
    items = [(p, Trace((Step("good"), Step("bad")), "cut")) for p in asked(200)]  # all of it wrong, says arithmetic
    told = {row["k"]: row for row in labels.audit(labels.rollouts(POLICY, items, k=16, seed=1).chains, k=16).rows[:5]}
    for k in (1, 2, 4):
        again = labels.audit(labels.rollouts(POLICY, items, k=k, seed=2).chains, k=k).rows
        hard = next(row for row in again if row["k"] == k)
        assert hard["false_positive"] / 200 == pytest.approx(told[k]["false_positive"] / 200, abs=0.06)
    chances = [told[k]["false_positive"] / 200 for k in (1, 2, 4)]
    assert chances == pytest.approx([1 - 0.25**k for k in (1, 2, 4)], abs=0.03)


def test_what_cannot_be_audited_is_named(asked):
    """Bug: labels cut to the length of their chain; shares of another k rounded."""
    assert labels.audit([]) == labels.Audit(labels.audit([]).rows, [], [])
    assert [row["steps"] for row in labels.audit([]).rows] == [0, 0]
    for bad, more, what in (
        ((1.0, 0.25, 1.0), {"k": 3}, "no share of k=3"),
        ((1.0, 1.0), {}, "labels"),
        ((1.0, 1.5, 1.0), {}, "labels"),
        ((1.0, 1.0, 1.0), {"k": 4, "ks": [8]}, "8 of 4"),
        ((1.0, 1.0, 1.0), {"ks": [2]}, "without k"),
        ((1.0, 1.0, 1.0), {"k": 0}, "k=0"),
    ):
        with pytest.raises(WorkbenchError, match=what):
            labels.audit([worked("3*4=12", "2+12=14", "14", marks=bad)], **more)


TOY = Scripted(
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


def test_a_search_can_be_audited_and_filtered():
    """The whole way: OmegaPRM, consensus with the oracle, audit. What the oracle agrees with is right by the audit."""
    problems = [replace(SUM, id=f"sum/{i}") for i in range(40)]
    made = labels.omega(TOY, problems)
    both, kept = labels.consensus(TOY, made.chains, Oracle(problems))
    before, after = labels.audit(made.chains).rows[0], labels.audit(both.chains).rows[0]
    assert before["chains"] == len(made.chains) > 40 and kept == len(both.chains) / len(made.chains)
    assert after["first_error"] == after["chains"] == after["located"] == before["first_error"] == len(both.chains)
    lucky = [c for c in made.chains if words(c)[0] == "2+3=5" and c.labels[0] > 0]
    assert len(lucky) == len(made.chains) - len(both.chains) > 10, "a wrong step that was repaired once is called right"
    assert before["false_positive"] == len(lucky) and after["false_positive"] == 0
