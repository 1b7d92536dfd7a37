import pytest
from searching import POLICY, go, knobs, seen
from test_generative import TWO

from workbench.search import Memo
from workbench.types import Cost
from workbench.verifiers.generative import Generative, question


@pytest.mark.parametrize("steps", ["each", "last"])
@pytest.mark.parametrize("name", ["best_of_n", "beam", "dvts", "lookahead", "mcts", "particle", "weighted_vote"])
def test_bill(asked, name, steps):
    judge = Generative(TWO, k=3, steps=steps)
    more = knobs(name, n=4, width=2, aggregate="last")
    results = go(name, asked(6), POLICY, judge, **more)
    free = go(name, asked(6), POLICY, Generative(TWO, k=3, steps=steps), **more)
    assert seen(results) == seen(free)
    assert seen(results) == seen(go(name, asked(6), POLICY, judge, **more)), "the second search from memory"
    memo = Memo()
    for _ in range(2):
        assert seen(results) == seen(go(name, asked(6), POLICY, judge, memo=memo, **more))
    for r in results:
        if steps == "each" and name in ("best_of_n", "beam", "dvts", "weighted_vote", "particle"):
            want = sum((judge.known[question(r.problem.blind(), n.steps)].cost for n in r.nodes), Cost())
            assert (r.cost.judged, r.cost.verifier_calls) == (want.judged, want.verifier_calls)
            assert r.cost.verifier_flops == pytest.approx(want.verifier_flops)
        assert r.cost.verifier_flops > 0
