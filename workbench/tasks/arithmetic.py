"""Chains of + - * over numbers of up to two digits; level = number of operations, one operation a step.

The factor of a product is a single digit (a product of two 2-digit numbers is not one step of
mental arithmetic), and no running total leaves 0..999: negative numbers are left out.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence

from ..types import Problem, Step, Trace, WorkbenchError
from . import draw

CARD = "47+38-29*2: a chain of + - * with the usual precedence; the answer is a whole number from 0 to 999."
LEVELS = (1, 2, 3, 4, 5, 6)
LIMIT = 999
OPS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def load(split: str, n: int, seed: int = 0, level: int | None = None) -> list[Problem]:
    """`n` problems of a split, levels in turn (or one level). Disjoint splits, see `tasks.split_of`.

    >>> load("test", 3)[0].level, load("test", 3)[2].level
    (1, 3)
    """
    return draw("arithmetic", split, n, seed, level, LEVELS, key, _make)


def key(problem: Problem) -> str:
    """Equal for the same terms in another order: `12+30` and `30+12` are one question."""
    terms = re.findall(r"[+-]?[\d*]+", problem.prompt)
    return "arithmetic:" + "".join(sorted(t if t[0] in "+-" else "+" + t for t in terms))


def _make(rng, level: int) -> tuple[str, str]:
    while True:
        tokens: list = [rng.randint(10, 99)]
        for _ in range(level):
            product_open = len(tokens) > 1 and tokens[-2] == "*"  # at most one factor a term
            op = rng.choice("+-" if product_open else "+-*")
            tokens += [op, rng.randint(2, 9) if op == "*" else rng.randint(10, 99)]
        try:
            steps = _evaluate(tokens)
        except WorkbenchError:
            continue
        return "".join(map(str, tokens)), steps[-1][1]


def _evaluate(tokens: list) -> list[tuple[str, str]]:
    """Left to right with precedence: [(step text, result)]. A product is done when the sum reaches it."""
    terms: list[list] = [[]]
    for token in tokens:
        if token in ("+", "-"):
            terms.append([token])
        else:
            terms[-1].append(token)
    steps, total = [], None

    def do(a: int, op: str, b: int) -> int:
        c = OPS[op](a, b)
        if not 0 <= c <= LIMIT:
            raise WorkbenchError(
                f"{a}{op}{b}={c} leaves the range 0 to {LIMIT}: write one that stays inside, as 47+38-29*2 does"
            )
        steps.append((f"{a}{op}{b}={c}", str(c)))
        return c

    for term in terms:
        sign, numbers = (term[0], term[1:]) if term[0] in ("+", "-") else ("+", term)
        value = numbers[0]
        for factor in numbers[2::2]:
            value = do(value, "*", factor)
        total = value if total is None else do(total, sign, value)
    return steps


def _tokens(prompt: str) -> list:
    return [t if t in OPS else int(t) for t in re.findall(r"[0-9]+|[-+*]", prompt)]


def demonstration(problem: Problem) -> Trace:
    """One good chain.

    >>> [s.text for s in demonstration(parse("47+38-29*2")).steps]
    ['47+38=85', '29*2=58', '85-58=27', '27']
    """
    steps = _evaluate(_tokens(problem.prompt))
    return Trace((*(Step(text) for text, _ in steps), Step(steps[-1][1], final=True)))


def check(problem: Problem, answer: str | None) -> bool:
    """Whole numbers are compared as numbers; anything else is wrong (never a substring).

    >>> check(parse("6+6"), "12"), check(parse("6+6"), "2"), check(parse("6+6"), "012.0")
    (True, False, False)
    """
    gold = problem.answer if problem.answer is not None else _evaluate(_tokens(problem.prompt))[-1][1]
    return answer is not None and re.fullmatch(r"[0-9]{1,9}", answer) is not None and int(answer) == int(gold)


def oracle(problem: Problem, steps: Sequence[Step]) -> list[bool]:
    """Is the chain still right after each step? Any order that keeps the value is accepted.

    A step `x op y=z` is right if z is right and `x op y` stands in what is left of the expression, where
    it may be done now. The closing answer is right if it is the value. After the first wrong step all are.

    >>> oracle(parse("2+3*4"), [Step("2+3=5"), Step("5*4=20"), Step("20", True)])
    [False, False, False]
    >>> oracle(parse("2+3*4"), [Step("3*4=12"), Step("2+12=14"), Step("14", True)])
    [True, True, True]
    """
    left, right, labels = _tokens(problem.prompt), True, []
    for step in steps:
        if step.final:
            right = right and check(problem, step.text)
        elif right:
            left = _reduce(left, step.text)
            right = left is not None
        labels.append(right)
    return labels


def correct(problem: Problem, steps: Sequence[Step]) -> Step:
    """The step that a labeller would write after these right steps (PRM800K's human completions).

    >>> correct(parse("2+3*4"), [Step("3*4=12")]).text
    '2+12=14'
    """
    left = _tokens(problem.prompt)
    for step in steps:
        left = _reduce(left, step.text)
        if left is None:
            raise WorkbenchError(f"{problem.id}: {step.text!r} is not a right step, so nothing right can follow it")
    return Step(_evaluate(left)[0][0]) if len(left) > 1 else Step(str(left[0]), final=True)


def _reduce(tokens: list, text: str) -> list | None:
    match = re.fullmatch(r"([0-9]{1,4})([-+*])([0-9]{1,4})=([0-9]{1,4})", text)
    if not match:
        return None
    a, op, b, c = int(match[1]), match[2], int(match[3]), int(match[4])
    if OPS[op](a, b) != c:
        return None
    for i in range(0, len(tokens) - 2, 2):
        before = tokens[i - 1] if i else "+"
        after = tokens[i + 3] if i + 3 < len(tokens) else "+"
        # A product may be done at once; a sum only where nothing binds tighter or was to be subtracted first.
        free = before != "*" and (op == "*" or (before == "+" and after != "*"))
        if tokens[i : i + 3] == [a, op, b] and free:
            return [*tokens[:i], c, *tokens[i + 3 :]]
    return None


def parse(text: str) -> Problem:
    """A user's own problem, or a WorkbenchError that says what would work.

    >>> parse(" 47 + 38 - 29 x 2 ").answer
    '27'
    """
    prompt = re.sub(r"\s*([-+*])\s*", r"\1", re.sub("[×x]", "*", text.replace("−", "-"))).strip().rstrip("=? ")
    if not re.fullmatch(r"[0-9]{1,2}([-+*][0-9]{1,2}){1,12}", prompt):
        raise WorkbenchError(
            f"cannot read {text[:60]!r} as arithmetic: write whole numbers of one or two digits with + - *, "
            "two or more of them, for example 47+38-29*2"
        )
    tokens = _tokens(prompt)
    answer = _evaluate(tokens)[-1][1]
    return Problem(f"arithmetic/user/{prompt}", "arithmetic", prompt, answer, len(tokens) // 2, "user")


def mutate(problem: Problem, answer: str, rng) -> str:
    return str(int(answer) + rng.choice([-10, -1, 1, 10, 100]))
