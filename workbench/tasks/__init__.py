"""Tasks: one file = one task, found by its file name.

A task is a module with

    LEVELS                          tuple of ints, easy to hard
    CARD                            one sentence: what a problem is, what an answer is
    load(split, n, seed, level)     -> [Problem]; a longer load begins with the shorter one
    check(problem, answer)          -> bool; the only judge of an answer
    demonstration(problem)          -> Trace; one good chain, a WorkbenchError where nobody wrote one
    oracle(problem, steps)          -> [bool]; is the chain still right after each step? Absent where only people know
    parse(text)                     -> Problem; a user's own, or a WorkbenchError that says what would work
    mutate(problem, answer, rng)    -> str; a wrong answer that looks right (for the law tests)
    key(problem)                    -> str; equal for two wordings of the same question

A task draws its problems (`draw`) or picks them from the rows of a data set (`table`, `pick`). The latter also has

    HUB                             {part: (hub id, configuration, split)}: `test`, and `rest` for train and valid

A data set or a package that is not here is `Missing`, which says how to get it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import pkgutil
import random
import re
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from ..grading import canonical
from ..types import Problem, Step, Trace, WorkbenchError, unknown

SPLITS = {"train": (0, 80), "valid": (80, 90), "test": (90, 100)}  # percent of the key space
TRIES = 1_000  # draws for one problem of a split
LONGEST = 4_000  # characters of a question that a user asks


class Missing(WorkbenchError):
    """What a task is made from, a data set or a package, is not on this machine."""


def names() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def get(name: str):
    """The task module called `name`. An unknown name is a WorkbenchError with the nearest ones."""
    if known := sys.modules.get(f"{__name__}.{name}"):
        return known  # asked for at every answer that is checked: listing the folder is a thousand times slower
    if name not in names():
        raise unknown("task", name, names())
    return importlib.import_module(f"{__name__}.{name}")


def digest(*parts) -> int:
    """A 64-bit number from any parts: the same in every process, unrelated for neighbouring seeds."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def rng(*parts) -> random.Random:
    """Randomness of one item. Never seed + index: seed 43 would be seed 42 shifted by one."""
    return random.Random(digest(*parts))


def split_of(key: str) -> str:
    """The one split that a problem belongs to, by a hash of what it asks: splits are disjoint by construction."""
    percent = digest("split", key) % 100
    return next(split for split, (low, high) in SPLITS.items() if low <= percent < high)


def draw(
    task: str, split: str, n: int, seed: int, level: int | None, levels: tuple[int, ...], key: Callable, make: Callable
) -> list[Problem]:
    """The first `n` problems of a stream: item i has a level (levels in turn) and randomness of its own.

    `make(rng, level) -> (prompt, answer, ...)` is drawn again until the problem falls into `split`. Held-out
    problems are distinct; the train stream may repeat one, since the easy levels are small.
    """
    _known(task, split, level, levels)
    return list(_stream(task, split, n, seed, level, levels, key, make))


def replay(problem: Problem, make: Callable) -> tuple:
    """All that `make` gave when `draw` came to this problem, for a task whose chain cannot be told from the prompt.

    >>> task = get("arithmetic")
    >>> replay(task.load("test", 3)[2], task._make)[0] == task.load("test", 3)[2].prompt
    True
    """
    match = re.fullmatch(r"([^/]+)/([^/]+)/s(-?[0-9]+)/(?:l([0-9]+)/)?([0-9]+)", problem.id)
    if match:
        task, split, seed, level, index = match.groups()
        item = rng(task, split, seed, int(level) if level else None, index)
        for made in (make(item, problem.level) for _ in range(TRIES)):
            if made[0] == problem.prompt:
                return made
    raise WorkbenchError(f"{problem.id} was not drawn by `load`, so nobody knows a chain for it: load one")


def _known(task: str, split: str, level: int | None, levels: tuple[int, ...]) -> None:
    if split not in SPLITS:
        raise WorkbenchError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
    if level is not None and level not in levels:
        raise WorkbenchError(f"{task} has no level {level}: one of {', '.join(map(str, levels))}")


def _stream(task, split, n, seed, level, levels, key, make) -> Iterator[Problem]:
    seen: set[str] = set()
    for index in range(n):
        wanted = level or levels[index % len(levels)]
        random_item = rng(task, split, seed, level, index)
        tag = f"l{level}/" if level else ""
        for _ in range(TRIES):
            prompt, answer, *_ = make(random_item, wanted)
            problem = Problem(f"{task}/{split}/s{seed}/{tag}{index}", task, prompt, answer, wanted, split)
            name = key(problem)
            if split_of(name) == split and (split == "train" or name not in seen):
                break
        else:
            raise WorkbenchError(f"{task} level {wanted} has no more {split} problems: ask for fewer than {n}")
        seen.add(name)
        yield problem


# --- problems in words -------------------------------------------------------------------------------------------


_WRITTEN = re.compile(r"(?:\\?[$£€])?([-+−]?[0-9.,]+?)\.?(?:\\?%)?")


def gold(problem: Problem) -> str:
    """The known answer. An unknown one is a WorkbenchError, since every answer to it would be wrong."""
    if problem.answer is None:
        raise WorkbenchError(f"{problem.id} has no known answer, so nothing can be graded: give it an `answer`")
    return problem.answer


def same_number(answer: str | None, gold: str) -> bool:
    r"""Is `answer` the number `gold`, written out? A currency before it, a % or a full stop after it do not count.

    Sums are not done for the answer: a reward for `9*2` teaches to leave it at that.

    >>> same_number("$1,080.00", "1080"), same_number("1080 pens", "1080"), same_number("27*40", "1080")
    (True, False, False)
    """
    match = _WRITTEN.fullmatch(answer.strip()) if isinstance(answer, str) else None
    value = canonical(match[1]) if match else None
    return isinstance(value, Fraction) and value == canonical(gold)


def question(task: str, text: str, example: str) -> Problem:
    """A user's own question in words; nobody knows its answer (None) nor its level (1). WorkbenchError: no question.

    >>> question("gsm8k", " What is\\nhalf of 3? ", "").prompt
    'What is half of 3?'
    """
    words = text.split() if isinstance(text, str) and len(text) <= LONGEST else []
    if len(words) < 2 or not any(re.fullmatch(r"[^\W\d_]{2,}[.,:;?!]?", word) for word in words):
        raise WorkbenchError(f"cannot read {str(text)[:60]!r} as a question: ask in words, for example {example}")
    prompt = " ".join(words)
    return Problem(f"{task}/user/{digest(prompt):016x}", task, prompt, None, split="user")


def chain_of(lines: Iterable[str], answer: str) -> Trace:
    """Lines of a worked solution, one step each, and the answer; empty lines are no steps."""
    steps = (Step(" ".join(line.split())) for line in lines if line.strip())
    return Trace((*steps, Step(answer, final=True)))


# --- problems that are rows of a data set ------------------------------------------------------------------------


class Row(NamedTuple):
    """What a task reads from a row. `solution`: the lines of the worked one, () where there is none."""

    prompt: str
    answer: str
    level: int
    solution: tuple[str, ...]


def folders() -> list[Path]:
    """Where data sets are looked for: the folder that WORKBENCH_DATA names, else `data` here, else `shared/data`."""
    named, project = os.environ.get("WORKBENCH_DATA"), Path(__file__).parents[2]
    return [Path(named)] if named else [project / "data", project.parent / "shared" / "data"]


def table(
    task: str, read: Callable[[dict], Row], files: Mapping[str, tuple[str, ...]], hub: Mapping[str, tuple]
) -> dict[str, tuple[Problem, Row]]:
    """All problems of a data set by key, the `plain` prompt. Of equal prompts the first stays, and `test` comes first.

    `files` (names under `<folder>/<task>/`, the first that is there counts) and `hub` have a `test` part and a `rest`,
    which is dealt to train and valid (a tenth) by a hash of the key: splits are disjoint, and a problem has the same id
    and split, whatever the order of the rows and wherever they came from. What `read` fails on is no problem; such rows
    are left out with one warning. Missing: no rows to be had.
    """
    found: dict[str, tuple[Problem, Row]] = {}
    for part in ("test", "rest"):
        bad, good = [], 0
        for place, raw in _rows(task, files[part], hub[part]):
            try:
                row = read(raw if isinstance(raw, dict) else json.loads(raw))
                if not row.prompt or not row.answer:
                    raise ValueError("empty")
            except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
                bad.append(f"{place} ({type(error).__name__}: {error})")
                continue
            good, key = good + 1, plain(row.prompt)
            split = "test" if part == "test" else "valid" if split_of(key) == "valid" else "train"
            problem = Problem(f"{task}/{split}/{digest(key):016x}", task, row.prompt, row.answer, row.level, split)
            found.setdefault(key, (problem, row))
        if not good:
            raise WorkbenchError(f"{task}: no row is a problem, the first is {(bad or ['missing'])[0]}")
        if bad:
            warnings.warn(f"{task}: {len(bad)} rows are no problem and left out, the first {bad[0]}", stacklevel=2)
    return found


def pick(
    task: str, table: Mapping[str, tuple[Problem, Row]], split: str, n: int, seed: int, level: int | None, levels: tuple
) -> list[Problem]:
    """The first `n` problems of a split in the order of a seed. Levels are as frequent as the data have them."""
    _known(task, split, level, levels)
    there = [problem for problem, _ in table.values() if problem.split == split and level in (None, problem.level)]
    if n > len(there):
        of = "" if level is None else f" of level {level}"
        raise WorkbenchError(f"{task} has {len(there)} {split} problems{of}: ask for fewer than {n}")
    return sorted(there, key=lambda problem: digest("order", seed, problem.id))[:n]


def worked(problem: Problem, table: Mapping[str, tuple[Problem, Row]]) -> Trace:
    """The worked solution that came with the row of a problem."""
    _, row = table.get(plain(problem.prompt), (None, None))
    if row is None or not row.solution:
        raise WorkbenchError(f"{problem.id}: the data have no worked solution to it, so there is no demonstration")
    return chain_of(row.solution, row.answer)


def _rows(task: str, names: tuple[str, ...], hub: tuple) -> Iterator[tuple[str, bytes | dict]]:
    """(place, a line of JSON or a row) from the first file that is there, else from the hub."""
    places = [folder / task / name for folder in folders() for name in names]
    path = next((path for path in places if path.is_file()), None)
    if path:
        with open(path, "rb") as file:
            yield from ((f"{path.name}:{number}", line) for number, line in enumerate(file, 1) if line.strip())
        return
    remedy = (
        f"put {' or '.join(names)} into the folder {task} of {' or '.join(map(str, folders()))} "
        f"(WORKBENCH_DATA names another), or install what fetches {hub[0]} from the hub: pip install datasets"
    )
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise Missing(f"{task} is not on this machine: {remedy}") from error
    try:
        rows = load_dataset(hub[0], hub[1], split=hub[2])
    except Exception as error:  # a hub fails in many ways; each means: not to be had
        raise Missing(f"{task} could not be had ({type(error).__name__}: {str(error)[:200]}): {remedy}") from error
    yield from ((f"{hub[0]}:{number}", row) for number, row in enumerate(rows))


# --- contamination -----------------------------------------------------------------------------------------------

_SPACING = re.compile(r"(?<!\\)\\(?:[,;:! ()\[\]$]|q?quad(?![a-z])|(?:left|right)(?![a-z]))|[$~]")
_TOKEN = re.compile(r"[0-9]+(?:\.[0-9]+)?|[^\W\d_]+|(?<=[0-9)])!|[^\s.,;:!?'\"‘’“”]")  # 3! is not 3


def plain(text: str) -> str:
    r"""What two printings of one question share: no case, punctuation, white space, `$` or spacing of LaTeX.

    Numbers, signs and their order stay: `1.5`, `15` and `1 5` differ. Left out: `\frac12` for `\frac{1}{2}`.

    >>> plain(r"Find $\dfrac{1}{2} + 1{,}000\,x$.") == plain(r"find \( \frac{1}{2}+1000x \)")
    True
    """
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().replace("−", "-").split())
    text = _SPACING.sub(" ", text).replace("{,}", ",").replace("\\%", "%")
    text = re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", re.sub(r"\\[dt]frac", r"\\frac", text))
    return " ".join(_TOKEN.findall(text))


def mark(problem: Problem) -> int:
    """A number that all printings of one question share, whatever data set they are from and what that calls it.

    A prompt without a word or a number is known by the problem's id alone.

    >>> mark(Problem("a/1", "a", "What is $2+3$?", None)) == mark(Problem("b/9", "b", "what is 2 + 3", None))
    True
    """
    return digest(plain(problem.prompt) or problem.id)


def overlap(train: Iterable[str], reported: Iterable[str]) -> list[str]:
    """The prompts to train on that are also reported on, each once; `train` is read as a stream.

    >>> overlap(iter(["What is $2+3$?", "What is 2-3?", "what is 2 + 3"]), ["What is 2+3?"])
    ['What is $2+3$?']
    """
    left = {digest(key) for key in map(plain, reported) if key}
    found = []
    for prompt in train:
        mark = digest(plain(prompt))
        if mark in left:
            left.remove(mark)
            found.append(prompt)
    return found


def refuse_overlap(train: Iterable[str], reported: Iterable[str], what: str) -> None:
    """WorkbenchError if anything of `what`, whose prompts are `train`, is also reported on.

    PRM800K's phase-1 test problems, for one, all lie inside MATH-500.
    """
    if found := overlap(train, reported):
        raise WorkbenchError(
            f"{len(found)} problems of {what} are also reported on, the first {found[0][:80]!r}: "
            "leave them out of training (tasks.overlap lists them) or report on others"
        )
