"""Tasks: one file = one task, found by its file name.

A task is a module with

    LEVELS                          tuple of ints, easy to hard
    CARD                            one sentence: what a problem is, what an answer is
    load(split, n, seed, level)     -> [Problem]; a longer load begins with the shorter one
    check(problem, answer)          -> bool; the only judge of an answer
    demonstration(problem)          -> Trace; one good chain
    oracle(problem, steps)          -> [bool]; is the chain still right after each step?
    parse(text)                     -> Problem; a user's own, or a WorkbenchError that says what would work
    mutate(problem, answer, rng)    -> str; a wrong answer that looks right (for the law tests)
    key(problem)                    -> str; equal for two wordings of the same question
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import pkgutil
import random
from collections.abc import Callable, Iterator

from ..types import Problem, WorkbenchError

SPLITS = {"train": (0, 80), "valid": (80, 90), "test": (90, 100)}  # percent of the key space


def names() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def get(name: str):
    """The task module called `name`. An unknown name is a WorkbenchError with the nearest ones."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1) or names()
        raise WorkbenchError(f"unknown task {name!r}: did you mean {' or '.join(map(repr, near))}?")
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

    `make(rng, level) -> (prompt, answer)` is drawn again until the problem falls into `split`. Held-out
    problems are distinct; the train stream may repeat one, since the easy levels are small.
    """
    if split not in SPLITS:
        raise WorkbenchError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
    if level is not None and level not in levels:
        raise WorkbenchError(f"{task} has no level {level}: one of {', '.join(map(str, levels))}")
    return list(_stream(task, split, n, seed, level, levels, key, make))


def _stream(task, split, n, seed, level, levels, key, make) -> Iterator[Problem]:
    seen: set[str] = set()
    for index in range(n):
        wanted = level or levels[index % len(levels)]
        random_item = rng(task, split, seed, level, index)
        tag = f"l{level}/" if level else ""
        for _ in range(1_000):
            prompt, answer = make(random_item, wanted)
            problem = Problem(f"{task}/{split}/s{seed}/{tag}{index}", task, prompt, answer, wanted, split)
            name = key(problem)
            if split_of(name) == split and (split == "train" or name not in seen):
                break
        else:
            raise WorkbenchError(f"{task} level {wanted} has no more {split} problems: ask for fewer than {n}")
        seen.add(name)
        yield problem
