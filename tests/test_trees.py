"""Trees as plain data: nothing is lost on the way to disk, and every node tells its story."""

import subprocess
import sys
from dataclasses import replace

import pytest

from workbench import plots, trees
from workbench.policies.scripted import Scripted
from workbench.search import drive
from workbench.types import Budget, WorkbenchError

LEAF = [("=1", 0.5), ("=0", 0.3), ("?", 0.2)]
POLICY = Scripted({(): [("a", 0.6), ("b", 0.4)], ("a",): [("a", 0.5), *LEAF[:1]], ("b",): LEAF, ("a", "a"): LEAF})


class Judge:
    aggregate = "min"

    def flops(self, prefix, new, head=True):
        return 3.0 * new

    def score(self, items):
        return [tuple({"a": 0.9, "b": 0.2}.get(s.text, 0.5) for s in trace.steps) for _, trace in items]


def grown(asked, name="beam", **more):
    knobs = {"n": 8, "width": 2} if name == "beam" else {"n": 4}
    return drive(asked(20), name, POLICY, Judge(), seed=3, **knobs, **more)


@pytest.mark.parametrize("name", ["beam", "best_of_n", "mcts"])
def test_a_tree_comes_back_from_disk(asked, tmp_path, name):
    """Bug: a tree that only the process that grew it can read."""
    for i, result in enumerate(grown(asked, name)):
        file = tmp_path / f"{i}.jsonl"
        file.write_text("".join(line + "\n" for line in trees.lines(result, seed=3)))
        back = trees.load(file)
        assert back == list(trees.branches(result, seed=3))
        mine = sorted(result.nodes, key=lambda node: len(node.path))
        for a, b in zip(mine, trees.nodes(back), strict=True):
            assert (a.path, a.stop, a.trace.answer) == (b.path, b.stop, b.trace.answer)
            assert [(s.text, s.ids, s.score) for s in a.steps] == [(s.text, s.ids, s.score) for s in b.steps]
        for branch, node in zip(back, result.nodes, strict=True):
            assert branch.logprob == pytest.approx(sum(node.steps[-1].logprobs))


def test_a_step_without_log_probs_is_no_certainty(asked, tmp_path):
    """Bug: the sum of no log-probs is 0, which is that of a sure step."""
    result = grown(asked, "best_of_n")[0]
    bare = {}
    for path, twig in result.tree.items():
        steps = tuple(replace(step, logprobs=()) for step in twig.node.steps)
        bare[path] = replace(twig, node=replace(twig.node, steps=steps))
    file = tmp_path / "tree.jsonl"
    file.write_text("".join(line + "\n" for line in trees.lines(replace(result, tree=bare))))
    assert {branch.logprob for branch in trees.load(file)} == {None}
    assert plots.labelled_tree(trees.nodes(trees.load(file))).data


def test_every_node_tells_what_became_of_it(asked):
    """Bug: a figure of a tree in which nobody knows why a branch ends."""
    fates = set()
    for result in grown(asked):
        tree = list(trees.branches(result))
        for branch in tree:
            fates.add(branch.fate.split(":")[0])
            below = [other for other in tree if other.path[: len(branch.path)] == branch.path and other != branch]
            assert bool(below) == (branch.fate == "kept: grown")
            parents = {other.path[:-1] for other in below}
            assert branch.visits == len(parents), "a visit for every node that was grown, here or below"
            if branch.fate == "answered: chosen":
                assert branch.text == result.answer
        costs = [(branch.sampled, branch.flops) for branch in tree]
        assert costs == sorted(costs) and costs[-1] == (result.cost.sampled, result.cost.flops)
    assert fates == {"kept", "pruned", "answered", "dead"}


def test_a_pruned_node_names_what_it_lost_to(asked):
    pruned = [b for result in grown(asked) for b in trees.branches(result) if b.fate.startswith("pruned: scored 0.200")]
    assert pruned and all("grew 4 others, the least of them with 0." in b.fate for b in pruned if b.round == 1)


def test_a_node_without_budget_says_so(asked):
    fates = {b.fate for r in grown(asked, budget=Budget(sampled=8)) for b in trees.branches(r)}
    assert "pruned: the budget was spent" in fates


def test_damage_is_named(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"problem": "p"}\n')
    with pytest.raises(WorkbenchError, match="t.jsonl, line 1"):
        trees.load(tmp_path / "t.jsonl")


def test_half_a_tree_is_refused(asked):
    tree = next(t for r in grown(asked) if (t := list(trees.branches(r))) and any(len(b.path) > 1 for b in t))
    with pytest.raises(WorkbenchError, match="has no parent"):
        trees.nodes(b for b in tree if len(b.path) > 1)
    with pytest.raises(WorkbenchError, match="is there twice"):
        trees.nodes([*tree, *tree])


def test_trees_are_read_without_torch():
    code = "import sys, workbench.trees; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
