"""Step labels: each test names the mistake it pins."""

import pytest

from workbench import labels, tasks
from workbench.policies import Sampling
from workbench.policies.scripted import Scripted
from workbench.types import Node, Step, Trace

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
