"""Countdown: reach the target with + - * / and parentheses, each number used exactly once; one operation a step.

A prompt is `3 5 8=29`: three or four numbers, then the target. A step is `8-5=3`; a fraction on the way stands in
parentheses, `8/3=(8/3)`. The answer is the expression, `3*8+5`.

| level | numbers       | reached by           | random play reaches it |
|-------|---------------|----------------------|------------------------|
| 1     | three of 1-50 | + and - alone        | 10.9 %                 |
| 2     | three of 1-50 | only with * or /     | 6.3 %                  |
| 3     | four of 1-30  | + and - alone        | 4.0 %                  |
| 4     | four of 1-30  | only with * or /     | 1.8 %                  |
| 5     | four of 1-30  | only with two * or / | 0.8 %                  |

Targets are 1-100. Random play takes two of the numbers left and an operation that gives a whole number from 0 up,
both uniformly (400 puzzles a level, 400 plays each).

Left out: leaving numbers unused (the television rule), backtracking inside a chain, and more than five numbers.
"""

from __future__ import annotations

import ast
import operator
import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import product
from math import inf

from ..types import Problem, Step, Trace, WorkbenchError
from . import draw

CARD = "3 5 8=29: use each number once with + - * / and parentheses to reach the target; the answer is the expression."
LEVELS = (1, 2, 3, 4, 5)
SIZES = {1: (3, 50), 2: (3, 50), 3: (4, 30), 4: (4, 30), 5: (4, 30)}  # level → how many numbers, the largest
PRODUCTS = {1: 0, 2: 1, 3: 0, 4: 1, 5: 2}  # level → how many * and / it needs at least
TARGET = 100
LONGEST = 100  # characters of an answer; five numbers need fewer than forty
EXAMPLE = "write two to five whole numbers, '=' and the target, for example 3 5 8=29"

SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}

Value = int | Fraction  # a Fraction only where it is not whole
Move = tuple[Value, str, Value, Value]  # a, operation, b, result


def load(split: str, n: int, seed: int = 0, level: int | None = None) -> list[Problem]:
    """`n` solvable puzzles of a split, levels in turn (or one level); `answer` is one solution of possibly many.

    The same numbers in another order are the same puzzle. Disjoint splits, see `tasks.split_of`.

    >>> [p.level for p in load("test", 6)], check((p := load("test", 1)[0]), p.answer)
    ([1, 2, 3, 4, 5, 1], True)
    """
    return draw("countdown", split, n, seed, level, LEVELS, key, _make)


def key(problem: Problem) -> str:
    """Equal for the same numbers in another order.

    >>> key(parse("3 5 8=29")) == key(parse("8 3 5=29"))
    True
    """
    numbers, target = _read(problem.prompt)
    return f"countdown:{' '.join(map(str, sorted(numbers)))}={target}"


def check(problem: Problem, answer: str | None) -> bool:
    """Does the expression use each number exactly once and reach the target? Judged from the prompt alone, exactly.

    Digits, `+ - * /`, parentheses and blanks, at most 100 characters; anything else is wrong: no decimals, powers,
    whole division, signs before a number, or `=24` after it. Any solution is right, not only `problem.answer`.

    >>> check(parse("3 8 3 8=24"), "8/(3-8/3)"), check(parse("1 4 5=10"), "1.5*4+4"), check(parse("1 4 5=8"), "4+4")
    (True, False, False)
    """
    numbers, target = _read(problem.prompt)
    if not isinstance(answer, str) or len(answer) > LONGEST:
        return False
    try:
        value, used = _worth(answer)
    except (SyntaxError, ZeroDivisionError):
        return False
    return Counter(used) == Counter(numbers) and value == target


def demonstration(problem: Problem) -> Trace:
    """One good chain, found by exhaustive search; whole numbers from 0 up on the way unless only fractions will do.

    The same chain for the same puzzle, whatever the order of its numbers. WorkbenchError when there is no solution.

    >>> [step.text for step in demonstration(parse("3 8 3 8=24")).steps]
    ['8/3=(8/3)', '3-(8/3)=(1/3)', '8/(1/3)=24', '8/(3-8/3)']
    """
    numbers, target = _read(problem.prompt)
    moves = _solution(numbers, target)
    if moves is None:
        raise WorkbenchError(f"{problem.prompt!r} has no solution: change the target or a number")
    steps = (Step(f"{_show(a)}{op}{_show(b)}={_show(c)}") for a, op, b, c in moves)
    return Trace((*steps, Step(_expression(numbers, moves), final=True)))


def oracle(problem: Problem, steps: Sequence[Step]) -> list[bool]:
    """Is the chain still right after each step? One bool a step; False from the first wrong step on.

    A step `a op b=c` is right when both numbers are there to be used, c is exact, and the target can still be reached
    from what is left (a dead end is wrong though its arithmetic is not). The closing answer is right when `check` says
    so, whatever the steps were.

    >>> oracle(parse("3 5 8=29"), [Step("8*3=24"), Step("24+5=29"), Step("8*3+5", True)])
    [True, True, True]
    >>> oracle(parse("3 5 8=29"), [Step("8+5=13"), Step("3*13=39"), Step("8*3+5", True)])
    [False, False, False]
    """
    numbers, target = _read(problem.prompt)
    left: tuple[Value, ...] | None = tuple(sorted(numbers))
    right, labels = True, []
    for step in steps:
        if step.final:
            right = right and check(problem, step.text)
        elif right:
            left = _apply(left, step.text)
            right = left is not None and _solve(left, target, False) is not None
        labels.append(right)
    return labels


def correct(problem: Problem, steps: Sequence[Step]) -> Step:
    """The step that a labeller would write after these right steps: the next on a way to the target, or the answer.

    >>> p = parse("3 5 8=29")
    >>> [correct(p, [Step(text) for text in done]).text for done in ([], ["3*8=24"], ["3*8=24", "5+24=29"])]
    ['8*3=24', '24+5=29', '5+3*8']
    """
    numbers, target = _read(problem.prompt)
    left: tuple[Value, ...] | None = tuple(sorted(numbers))
    moves: list[Move] = []
    for step in steps:
        left = _apply(left, step.text)
        if left is None:
            raise WorkbenchError(f"{problem.id}: {step.text!r} is not a right step, so nothing right can follow it")
        a, op, b, c = _STEP.fullmatch(step.text).groups()
        moves.append((_number(a), op, _number(b), _number(c)))
    if len(left) == 1:
        return Step(_expression(numbers, moves), final=True)
    ahead = _solution(left, target)
    if not ahead:
        raise WorkbenchError(f"{problem.id}: {target} cannot be reached from {', '.join(map(_show, left))}")
    a, op, b, c = ahead[0]
    return Step(f"{_show(a)}{op}{_show(b)}={_show(c)}")


def parse(text: str) -> Problem:
    """A user's own puzzle: two to five numbers of 1-999, `=`, `->` or a word such as `to`, and a target of 0-9999.

    WorkbenchError: text that cannot be read so, or a puzzle that has no solution.

    >>> parse("3, 5, 8, 25 -> 24").prompt, parse("make 24 from 3 5 8 25").prompt
    ('3 5 8 25=24', '3 5 8 25=24')
    """
    text = text if isinstance(text, str) else repr(text)
    words = text[:200].lower().strip().rstrip(".?!")
    number = r"[0-9]{1,4}"
    several = rf"({number}(?:\s*[\s,]\s*{number})*)"
    ways = (
        rf"(?:(?:use|using|numbers?|with)\s*:?\s*)?[\[(]?{several}[\])]?\s*"
        rf"(?:=|->|→|[,;]?\s*(?:to\s+(?:make|reach|get)|to|makes?|gives?|reach|target)\s*:?)\s*({number})",
        rf"(?:reach|make|target|get)\s*:?\s*(?P<target>{number})\s*(?:from|with|using|out of|numbers?)\s*:?\s*[\[(]?"
        rf"(?P<numbers>{number}(?:\s*[\s,]\s*{number})*)[\])]?",
    )
    match = next((m for way in ways if len(text) <= 200 and (m := re.fullmatch(way, words))), None)
    if not match:
        raise WorkbenchError(f"cannot read {text[:60]!r} as a countdown puzzle: {EXAMPLE}")
    first, last = (match["numbers"], match["target"]) if "numbers" in match.groupdict() else (match[1], match[2])
    numbers, target = [int(n) for n in re.findall(number, first)], int(last)
    if not 2 <= len(numbers) <= 5 or not all(1 <= n <= 999 for n in numbers):
        raise WorkbenchError(f"{text[:60]!r} is outside what countdown covers: {EXAMPLE}; each number 1-999")
    prompt = _prompt(numbers, target)
    moves = _solution(numbers, target)
    if moves is None:
        raise WorkbenchError(f"{prompt!r} has no solution with each number used once: change the target or a number")
    return Problem(
        f"countdown/user/{prompt}", "countdown", prompt, _expression(numbers, moves), _level(numbers, target), "user"
    )


def mutate(problem: Problem, answer: str, rng) -> str:
    """A wrong answer that looks right: another operation, a number off by one, a number left out, or one used twice."""
    while True:
        tokens = re.findall(r"[0-9]+|.", answer)
        spots = [i for i, token in enumerate(tokens) if token in "+-*/" or token.isdigit()]
        at = rng.choice(spots)
        if tokens[at] in "+-*/":
            tokens[at] = rng.choice("+-*/")
        else:
            tokens[at] = rng.choice([str(int(tokens[at]) + 1), rng.choice([t for t in tokens if t.isdigit()])])
        candidate = "".join(tokens) + rng.choice(["", "", "", f"+{tokens[-1]}" if tokens[-1].isdigit() else "*1"])
        if not check(problem, candidate):
            return candidate


# --- puzzles -----------------------------------------------------------------------------------------------------


def _make(rng, level: int) -> tuple[str, str]:
    """A puzzle of the level, made backwards: play at random, take where it ends for the target."""
    size, largest = SIZES[level]
    while True:
        numbers = [rng.randint(1, largest) for _ in range(size)]
        moves = _play(rng, numbers, ("+-", "+-**//", "*///+-")[PRODUCTS[level]], 10 * TARGET)
        target = moves[-1][3] if moves else 0
        if sum(op in "*/" for _, op, _, _ in moves) < PRODUCTS[level]:
            continue  # cheaper than asking what the target needs
        if 1 <= target <= TARGET and _level(numbers, target) == level:
            return _prompt(numbers, target), _expression(numbers, moves)


def _level(numbers: Sequence[int], target: int) -> int:
    """The level by what the target needs; by the count of numbers it is easy (up to three) or hard (from four on)."""
    few = len(numbers) <= 3
    if _needs(tuple(sorted(numbers)), target, 0):
        return 1 if few else 3
    return 2 if few else 4 if _needs(tuple(sorted(numbers)), target, 1) else 5


def _needs(numbers: tuple[int, ...], target: int, products: int) -> bool:
    """Can the target be reached with at most `products` of * and / (one at most, a whole number from it)?

    Sums alone are signs before numbers. With one product, two groups of numbers are summed and multiplied; the rest
    is summed to it.
    """
    if target in _sums(numbers):
        return True
    for left, right, rest in _parts(len(numbers)) if products else ():
        others = _sums(tuple(numbers[i] for i in rest))
        for a, b in product(_sums(tuple(numbers[i] for i in left)), _sums(tuple(numbers[i] for i in right))):
            if abs(target - a * b) in others or target + a * b in others:
                return True
            for x, y in ((a, b), (b, a)):
                if y and x % y == 0 and (abs(target - x // y) in others or target + x // y in others):
                    return True
    return False


@lru_cache
def _parts(size: int) -> list[tuple[list[int], ...]]:
    """All ways to deal places 0..size-1 to two factors, whose order does not count, and what stays outside."""
    deals = (
        [[i for i in range(size) if deal[i] == part] for part in range(3)] for deal in product(range(3), repeat=size)
    )
    return [(left, right, rest) for left, right, rest in deals if left and right and left < right]


@lru_cache(1 << 14)
def _sums(numbers: tuple[int, ...]) -> frozenset[int]:
    """Absolute values of all sums with signs; {0} of nothing."""
    totals = {0}
    for number in numbers:
        totals = {abs(total + sign * number) for total in totals for sign in (1, -1)}
    return frozenset(totals)


def _play(rng, numbers: Sequence[int], operations: str = "+-*/", largest: float = inf) -> list[Move]:
    """Random play: two of the numbers left, and an operation that keeps to whole numbers of 0 to `largest`.

    An operation that `operations` names twice is twice as likely; [] when there is none left to play.
    """
    left, moves = list(numbers), []
    while len(left) > 1:
        a, b = (left.pop(int(rng.random() * len(left))) for _ in range(2))
        a, b = max(a, b), min(a, b)
        results = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b and a % b == 0 else inf}
        legal = [op for op in operations if results[op] <= largest and results[op] < inf]
        if not legal:
            return []
        op = legal[int(rng.random() * len(legal))]
        left.append(results[op])
        moves.append((a, op, b, results[op]))
    return moves


# --- search ------------------------------------------------------------------------------------------------------


def _operate(a: Value, op: str, b: Value) -> Value | None:
    """The exact result, an int where it is whole; None for a division by zero."""
    if op == "+":
        c = a + b
    elif op == "-":
        c = a - b
    elif op == "*":
        c = a * b
    elif b == 0:
        return None
    else:
        c = a // b if a % b == 0 else Fraction(a) / b
    return int(c) if isinstance(c, Fraction) and c.denominator == 1 else c


def _whole(value: Value) -> bool:
    return isinstance(value, int) and value >= 0


def _solution(numbers: Sequence[int], target: int) -> tuple[Move, ...] | None:
    ordered = tuple(sorted(numbers))
    whole = _solve(ordered, target, True)
    return whole if whole is not None else _solve(ordered, target, False)


@lru_cache(1 << 16)
def _solve(values: tuple[Value, ...], target: int, whole: bool) -> tuple[Move, ...] | None:
    """The first solution of an exhaustive search over sorted values; `whole`: by whole numbers from 0 up only."""
    if len(values) == 1:
        return () if values[0] == target else None
    for j in range(len(values) - 1, 0, -1):
        for i in range(j - 1, -1, -1):
            rest = values[:i] + values[i + 1 : j] + values[j + 1 :]
            big, small = values[j], values[i]
            tried = set()
            for a, op, b in ((big, "+", small), (big, "-", small), (big, "*", small), (big, "/", small),
                             (small, "-", big), (small, "/", big)):  # fmt: skip
                c = _operate(a, op, b)
                if c is None or c in tried or (whole and not _whole(c)):
                    continue
                tried.add(c)
                if rest:
                    after = _solve(tuple(sorted((*rest, c))), target, whole)
                    if after is not None:
                        return ((a, op, b, c), *after)
                elif c == target:
                    return ((a, op, b, c),)
    return None


# --- text --------------------------------------------------------------------------------------------------------


def _prompt(numbers: Sequence[int], target: int) -> str:
    return f"{' '.join(map(str, numbers))}={target}"


def _read(prompt: str) -> tuple[list[int], int]:
    if not re.fullmatch(r"[0-9]+( [0-9]+)*=[0-9]+", prompt):
        raise WorkbenchError(f"{prompt[:60]!r} is no countdown prompt: {EXAMPLE}")
    numbers, target = prompt.split("=")
    return [int(number) for number in numbers.split()], int(target)


def _show(value: Value) -> str:
    return f"({value})" if isinstance(value, Fraction) else str(value)


def _expression(numbers: Sequence[int], moves: Sequence[Move]) -> str:
    """The moves as one expression with no more parentheses than it needs."""
    parts: list[tuple[Value, str, float]] = [(n, str(n), inf) for n in numbers]  # value, text, how tight it binds
    for a, op, b, c in moves:
        (left, left_bind), (right, right_bind) = (_take(parts, value) for value in (a, b))
        bind = 1 if op in "+-" else 2
        left = f"({left})" if left_bind < bind else left
        right = f"({right})" if right_bind < bind or (right_bind == bind and op in "-/") else right
        parts.append((c, left + op + right, bind))
    return parts[0][1]


def _take(parts: list[tuple[Value, str, float]], value: Value) -> tuple[str, float]:
    at = next(i for i, part in enumerate(parts) if part[0] == value)
    _, text, bind = parts.pop(at)
    return text, bind


_VALUE = r"(-?[0-9]{1,9}|\(-?[0-9]{1,9}/[0-9]{1,9}\))"
_STEP = re.compile(rf"{_VALUE} ?([-+*/]) ?{_VALUE} ?= ?{_VALUE}")


def _apply(left: tuple[Value, ...], text: str) -> tuple[Value, ...] | None:
    """The numbers left after a step, sorted; None for a step that is malformed, inexact or uses what is not there."""
    match = _STEP.fullmatch(text)
    if not match:
        return None
    try:
        a, b, c = (_number(match[i]) for i in (1, 3, 4))
    except ZeroDivisionError:
        return None
    rest = list(left)
    for value in (a, b):
        if value not in rest:
            return None
        rest.remove(value)
    return tuple(sorted((*rest, c))) if _operate(a, match[2], b) == c else None


def _number(text: str) -> Value:
    value = Fraction(text.strip("()"))
    return int(value) if value.denominator == 1 else value


def _worth(expression: str) -> tuple[Fraction, list[int]]:
    """(its exact value, the numbers in it); SyntaxError for anything but + - * / and whole numbers."""
    used: list[int] = []

    def value(node: ast.AST) -> Fraction:
        match node:
            case ast.Constant():
                used.append(node.value)
                return Fraction(node.value)
            case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div()):
                return SIGNS[type(node.op)](value(node.left), value(node.right))
        raise SyntaxError(f"{type(node).__name__} is no sum of whole numbers")

    if not re.fullmatch(r"[-+*/() 0-9]*", expression):
        raise SyntaxError("digits, + - * /, parentheses and blanks only")
    return value(ast.parse(expression.strip(), mode="eval").body), used
