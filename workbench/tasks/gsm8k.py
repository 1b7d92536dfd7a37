"""GSM8K: grade-school word problems, each with a worked solution of two to eight lines (Cobbe et al. 2021).

`test` is the official test (1,319 problems); train and valid are dealt from the official train (7,473). The level is
the number of lines of the worked solution; the few of nine and more count as eight. Calculator annotations
(`<<48/2=24>>`) are left out of demonstrations, since a chain is what a policy writes, and commas out of answers.

Left out: an oracle of steps; nobody wrote one, and a chain in prose cannot be checked by rule.
"""

from __future__ import annotations

import re
from functools import lru_cache

from ..types import Problem, Trace
from . import Row, gold, pick, plain, question, same_number, table, worked

CARD = "A word problem of everyday numbers, as 'Ann has 3 boxes of 4 pens. How many pens?'; the answer is a number."
LEVELS = (2, 3, 4, 5, 6, 7, 8)
FILES = {"test": ("test.jsonl",), "rest": ("train.jsonl",)}
HUB = {"test": ("openai/gsm8k", "main", "test"), "rest": ("openai/gsm8k", "main", "train")}


def load(split: str, n: int, seed: int = 0, level: int | None = None) -> list[Problem]:
    """`n` problems of a split, in an order of the seed, of all levels or of one. `tasks.Missing`: no data here."""
    return pick("gsm8k", _table(), split, n, seed, level, LEVELS)


def check(problem: Problem, answer: str | None) -> bool:
    """The number written out (`tasks.same_number`); one inside a text, or a sum still to be done, is wrong.

    >>> p = Problem("p", "gsm8k", "Ann has 3 boxes of 4 pens. How many pens?", "12")
    >>> check(p, "12.0"), check(p, "$12"), check(p, "120"), check(p, "She has 12"), check(p, "3*4")
    (True, True, False, False, False)
    """
    return same_number(answer, gold(problem))


def demonstration(problem: Problem) -> Trace:
    """The worked solution of the data, one line a step."""
    return worked(problem, _table())


def parse(text: str) -> Problem:
    """A user's own word problem, whose answer nobody knows.

    >>> parse("Ann has 3 boxes of 4 pens. How many pens?").answer is None
    True
    """
    return question("gsm8k", text, "Ann has 3 boxes of 4 pens. How many pens?")


def mutate(problem: Problem, answer: str, rng) -> str:
    return str(int(answer) + rng.choice([-10, -1, 1, 10, 100]))


def key(problem: Problem) -> str:
    return plain(problem.prompt)


@lru_cache(1)
def _table() -> dict[str, tuple[Problem, Row]]:
    return table("gsm8k", _read, FILES, HUB)


def _read(row: dict) -> Row:
    """
    >>> _read({"question": "3 boxes of 4?", "answer": "Pens: 3*4=<<3*4=12>>12\\n#### 12"}).solution
    ('Pens: 3*4=12',)
    """
    solution, answer = row["answer"].split("####")
    answer = str(int(answer.replace(",", "")))
    lines = tuple(line for line in re.sub(r"<<[^<>]*>>", "", solution).split("\n") if line.strip())
    return Row(" ".join(row["question"].split()), answer, min(max(len(lines), LEVELS[0]), LEVELS[-1]), lines)
