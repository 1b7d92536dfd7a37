"""Monte-Carlo tree search over steps, with PUCT (Silver et al. 2017; for reasoning steps Feng et al. 2023)."""

import math
from collections import Counter

from ..select import aggregate_score, weighted
from ..types import WorkbenchError
from . import Grow


def mcts(root, *, n: int = 16, width: int = 4, c: float = 1.0, value: str = "verifier", aggregate: str = "min"):
    """`n` simulations: go down by PUCT to a leaf, grow `width` children, value each, and tell all above it.

    PUCT = Q + c P sqrt(N of the parent) / (1 + N). The prior P is 1/width: children are samples of the policy, so what
    is likely is there more often already. `value`: a child's own score ("verifier"), or that of one chain sampled from
    it to the end ("rollout"; one that does not close is worth 0). A closed leaf that is chosen again tells its value
    again and grows nothing; what can only die is not chosen; what nobody could score is chosen after all else.
    How it finishes: with a weighted vote over all closed chains; if there are none, one chain is sampled to its end
    from the most visited node. Left out: virtual loss, a value mixed of both kinds.
    """
    if value not in ("verifier", "rollout"):
        raise WorkbenchError(f"value={value!r}: how to value a node, 'verifier' or 'rollout'")
    if n < 1 or width < 1 or c < 0:
        raise WorkbenchError(f"n={n}, width={width}, c={c}: at least one simulation and one child, and c 0 or more")
    children, worth, dead, closed = {}, {}, set(), {}
    visits, told, total = Counter(), Counter(), Counter()

    def puct(node):
        if node.path in dead:
            return 0, 0.0
        explore = c / width * math.sqrt(visits[node.path[:-1]]) / (1 + visits[node.path])
        return (2, total[node.path] / told[node.path] + explore) if told[node.path] else (1, explore)

    def tell(path):
        for above in [path[:depth] for depth in range(len(path) + 1)]:
            visits[above] += 1
            if worth[path] is not None:
                told[above] += 1
                total[above] += worth[path]

    for _ in range(n):
        node = root
        while node.path in children:
            node = max(children[node.path], key=puct)
        if node.path in dead:
            break
        if node.finished:
            tell(node.path)
            continue
        grown = yield Grow([node], width)
        closed |= {child.path: child for child in grown if child.stop == "answer"}
        going = [child for child in grown if not child.finished]
        ends = (yield Grow(going, to_end=True)) if value == "rollout" and going else going
        if not grown or (going and not ends):
            return _vote(closed, aggregate)
        closed |= {end.path: end for end in ends if end.stop == "answer"}
        children[node.path], below = grown, {end.path[: len(node.path) + 1]: end for end in ends}
        for child in grown:
            end = below.get(child.path, child)
            worth[child.path] = 0.0 if end.stop in ("length", "cut") else aggregate_score(end.trace, aggregate)
            if child.stop in ("length", "cut"):
                dead.add(child.path)
            else:
                tell(child.path)
        for above in [node.path[:depth] for depth in range(len(node.path), -1, -1)]:
            if all(child.path in dead for child in children[above]):
                dead.add(above)
    if not closed:
        node = root
        while living := [child for child in children.get(node.path, ()) if child.path not in dead]:
            node = max(living, key=lambda child: visits[child.path])
        seen = node.path in children or value == "rollout"  # its children 0 to width - 1 were not what is wanted
        closed = {end.path: end for end in (yield Grow([node], first=width if seen else 0, to_end=True))}
    return _vote(closed, aggregate)


def _vote(closed, aggregate):
    return weighted([node.trace for node in closed.values()], aggregate)
