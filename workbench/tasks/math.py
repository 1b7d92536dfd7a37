r"""MATH: competition problems in LaTeX, each with a worked solution and a level of 1 to 5 (Hendrycks et al. 2021).

`test` is MATH-500, the 500 test problems of PRM800K's second phase (Lightman et al. 2023); train and valid are dealt
from the other problems, of which any that reads like one of the 500 is left out. A step of a demonstration is a
paragraph of the worked solution: a short solution is one step. Line breaks in a prompt are spaces, as LaTeX reads them.

Left out: an oracle of steps (see PRM800K for what people said of them); the drawings ([asy]) in solutions, not those in
prompts; answers that several boxes hold: the last box counts.
"""

from __future__ import annotations

import re
from functools import lru_cache

from ..grading import equal
from ..types import Problem, Trace, WorkbenchError
from . import Row, gold, pick, plain, question, table, worked

CARD = r"A competition problem in LaTeX, as 'Find $x>0$ if $x^2=9$.'; the answer is an expression, as \frac{1}{2}."
LEVELS = (1, 2, 3, 4, 5)
FILES = {"test": ("test.jsonl", "math500_prm800k_split.jsonl"), "rest": ("train.jsonl", "math_test.jsonl")}
HUB = {
    "test": ("HuggingFaceH4/MATH-500", None, "test"),
    "rest": ("nlile/hendrycks-MATH-benchmark", None, "train"),  # PRM800K's other 12,000
}


def load(split: str, n: int, seed: int = 0, level: int | None = None) -> list[Problem]:
    """`n` problems of a split, in an order of the seed, of all levels or of one. `tasks.Missing`: no data here."""
    return pick("math", _table(), split, n, seed, level, LEVELS)


def check(problem: Problem, answer: str | None) -> bool:
    r"""Equal in value (`grading.equal`).

    >>> p = Problem("p", "math", "What is half of $\\sqrt{2}$?", r"\frac{\sqrt{2}}{2}")
    >>> check(p, r"\frac{1}{\sqrt{2}}"), check(p, "0.7071"), check(p, None)
    (True, False, False)
    """
    return equal(answer, gold(problem))


def demonstration(problem: Problem) -> Trace:
    """The worked solution of the data, one paragraph a step."""
    return worked(problem, _table())


def parse(text: str) -> Problem:
    """A user's own problem, whose answer nobody knows.

    >>> parse("Find $x>0$ if $x^2=9$.").answer is None
    True
    """
    return question("math", text, "Find $x>0$ if $x^2=9$.")


def mutate(problem: Problem, answer: str, rng) -> str:
    """A digit changed, a sign put before it, or something added, until it is wrong."""
    while True:
        digits = [match.start() for match in re.finditer("[0-9]", answer)]
        at = rng.choice(digits) if digits else None
        changed = "" if at is None else answer[:at] + str((int(answer[at]) + rng.randint(1, 9)) % 10) + answer[at + 1 :]
        candidate = rng.choice([*[changed] * 3, f"-{answer}", f"{answer}+1"])
        if candidate and not check(problem, candidate):
            return candidate


def key(problem: Problem) -> str:
    return plain(problem.prompt)


@lru_cache(1)
def _table() -> dict[str, tuple[Problem, Row]]:
    found = table("math", _read, FILES, HUB)
    if (n := sum(problem.split == "test" for problem, _ in found.values())) != 500:
        raise WorkbenchError(f"the test problems of math are {n} and not MATH-500: name that file {FILES['test'][1]}")
    return found


def _read(row: dict) -> Row:
    level = int(str(row["level"]).removeprefix("Level "))
    if level not in LEVELS:
        raise ValueError(f"level {level}")
    answer = (row["answer"] if "answer" in row else boxed(row["solution"])).strip()
    paragraphs = re.split(r"\n\s*\n", re.sub(r"\[asy\].*?\[/asy\]", "", row["solution"], flags=re.DOTALL))
    return Row(" ".join(row["problem"].split()), answer, level, tuple(p for p in paragraphs if p.strip()))


def boxed(text: str) -> str:
    r"""What stands in the last `\boxed{}` of a solution. ValueError: no box, or one that does not close.

    >>> boxed(r"So \boxed{1} or $\boxed{\frac{1}{2}}.$"), boxed(r"$\fbox{3}$ and $\boxed 4$")
    ('\\frac{1}{2}', '4')
    """
    *_, last = re.split(r"\\f?boxed(?![a-z])|\\fbox(?![a-z])", text)
    if last == text:
        raise ValueError("no box")
    last = last.lstrip()
    if not last.startswith("{"):
        return last[:1]
    depth = 0
    for i, char in enumerate(last):
        depth += (char == "{" and last[i - 1] != "\\") - (char == "}" and last[i - 1] != "\\")
        if depth == 0:
            return last[1:i].strip()
    raise ValueError("a box that does not close")
