"""GSM-symbolic: word problems from templates of GSM8K with other names and numbers (Mirzadeh et al. 2024).

The templates are those of the PyPI package reasoning-gym, which rewrote them and marks the ones to be trusted; its own
stream of problems is not used, since there item i of seed 43 is item i+1 of seed 42. The level is the number of lines
of the worked solution; six means six and more. Two problems with the same numbers in the same order are one.

Left out: seven templates whose gold answers are wrong for some numbers (`WRONG`), draws with a negative answer or with
rounding noise in their text (`22.416666666666668 hours`), and the paper's harder variants (P1, P2, NoOp).
"""

from __future__ import annotations

import re
from functools import lru_cache
from random import Random

from ..types import Problem, Trace
from . import Missing, chain_of, draw, gold, question, replay, same_number

CARD = "A word problem from a template, as 'Ann has 3 boxes of 4 pens. How many pens?'; the answer is a number."
LEVELS = (2, 3, 4, 5, 6)
WRONG = {2, 3, 4, 40, 49, 75, 99}  # they cut what is not whole: `5*0.5=2`, `$117.10 - $53.10 = $63`, `78 / 12 = 6`


def load(split: str, n: int, seed: int = 0, level: int | None = None) -> list[Problem]:
    """`n` problems of a split, levels in turn (or one level). `tasks.Missing`: reasoning-gym is not installed.

    Splits are disjoint in `key`, see `tasks.split_of`; they share templates.
    """
    return draw("gsm_symbolic", split, n, seed, level, LEVELS, key, _make)


def check(problem: Problem, answer: str | None) -> bool:
    """The number written out (`tasks.same_number`); the package itself takes the first number of any text.

    >>> p = Problem("p", "gsm_symbolic", "Ann has 3 boxes of 4 pens. How many pens?", "12")
    >>> check(p, "12.0"), check(p, "12 or 13")
    (True, False)
    """
    return same_number(answer, gold(problem))


def demonstration(problem: Problem) -> Trace:
    """The worked solution of the template, one line a step. WorkbenchError: a problem that `load` did not draw."""
    _, answer, lines = replay(problem, _make)
    return chain_of(lines, answer)


def parse(text: str) -> Problem:
    """A user's own word problem, whose answer nobody knows.

    >>> parse("Ann has 3 boxes of 4 pens. How many pens?").answer is None
    True
    """
    return question("gsm_symbolic", text, "Ann has 3 boxes of 4 pens. How many pens?")


def mutate(problem: Problem, answer: str, rng) -> str:
    return f"{float(answer) + rng.choice([-10, -1, 1, 10, 100]):g}"


def key(problem: Problem) -> str:
    """The numbers in their order: the same story about somebody else is the same question.

    >>> key(parse("Ann has 3 boxes of 4 pens.")) == key(parse("Bob has 3 bags of 4 nuts."))
    True
    """
    return "gsm_symbolic:" + " ".join(re.findall(r"[0-9][0-9,]*(?:[./:][0-9]+)?", problem.prompt))


def _make(rng: Random, level: int) -> tuple[str, str, list[str]]:
    while True:
        question, answer, lines = _example(rng.choice(_templates()[level]), rng)
        if not answer.startswith("-") and not re.search(r"[0-9]\.[0-9]{4}", " ".join([question, answer, *lines])):
            return question, answer, lines


def _example(template: int, rng: Random) -> tuple[str, str, list[str]]:
    """(question, answer, lines of the worked solution)"""
    made = _library().generators[template](rng, 1.0)
    solution = made["metadata"]["answer_cot"].split("####")[0]
    return " ".join(made["question"].split()), made["answer"], [line for line in solution.split("\n") if line.strip()]


@lru_cache(1)
def _templates() -> dict[int, list[int]]:
    """Level -> the templates of that many lines, which do not depend on names and numbers."""
    _library()  # says what to do where it is missing
    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import tasks_ok

    found: dict[int, list[int]] = {level: [] for level in LEVELS}
    for template in (template for template in tasks_ok if template not in WRONG):
        lines = len(_example(template, Random(0))[2])
        found[min(max(lines, LEVELS[0]), LEVELS[-1])].append(template)
    return found


@lru_cache(1)
def _library():
    try:
        from reasoning_gym.arithmetic import GSMSymbolicDataset, GSMSymbolicDatasetConfig
    except ImportError as error:
        raise Missing("gsm_symbolic takes its templates from a package: pip install reasoning-gym") from error
    return GSMSymbolicDataset(GSMSymbolicDatasetConfig(seed=0, size=1))
