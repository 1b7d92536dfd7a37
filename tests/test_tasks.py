"""Laws that every task keeps, found by walking `tasks.names()`, and hand cases of countdown."""

import csv
import json
import os
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import tasks
from workbench.tasks import countdown
from workbench.types import Problem, Step, WorkbenchError

HOME = Path(__file__).parents[1]
DATA = Path(__file__).parents[2] / "shared" / "data"
HOSTILE = ["", " ", "hello", "0", "=", "1+", "1/0", "9**9**9**9", "__import__('os')", "<user>", "\x00", "٣+٤", "-", "?"]
HOSTILE += ["1" * 10_000, "1 " * 10_000, "(" * 10_000, "1e9+1", "1.5+2", "3 5 8", "3 5 8 = ", "= 24", "0 0 = 0", "5=5"]

every_task = pytest.mark.parametrize("name", tasks.names())
stepwise = pytest.mark.parametrize("name", [name for name in tasks.names() if hasattr(tasks.get(name), "oracle")])


@lru_cache
def missing(name):
    """What the task needs and this machine lacks. The hub is not asked: no test needs a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "datasets", None)
        try:
            tasks.get(name).load("test", 1)
        except tasks.Missing as why:
            return str(why)


def get(name):
    if why := missing(name):
        pytest.skip(why)
    return tasks.get(name)


@lru_cache
def load(name, split="train", n=200, seed=0, level=None):
    return get(name).load(split, n, seed, level)


def some(name):
    """Problems to try every way: fewer where an answer is graded in another process."""
    return load(name, n=200 if hasattr(get(name), "oracle") else 40)


def drawn(task):
    """Is every seed another set of problems, not another order of the same rows?"""
    return not hasattr(task, "HUB")


def corrupt(text):
    """The step with its result off by one."""
    return re.sub(r"[0-9]+(?=\D*$)", lambda match: str(int(match[0]) + 1), text)


# --- laws --------------------------------------------------------------------------------------------------------


def test_tasks_are_found_by_file_name():
    assert {"arithmetic", "countdown", "gsm8k", "gsm_symbolic", "math"} <= set(tasks.names())
    with pytest.raises(WorkbenchError, match="did you mean 'countdown'"):
        tasks.get("countdwn")


@every_task
def test_the_protocol_is_whole(name):
    task = tasks.get(name)
    assert list(task.LEVELS) == sorted(set(task.LEVELS)) and isinstance(task.LEVELS, tuple)
    assert task.CARD and "\n" not in task.CARD
    for function in ("load", "check", "demonstration", "parse", "mutate", "key"):
        assert callable(getattr(task, function))
    assert set(getattr(task, "HUB", {"test": 0, "rest": 0})) == {"test", "rest"}


@every_task
def test_a_demonstration_is_accepted_step_by_step(name):
    """Pins: a teacher that the judge would mark wrong."""
    task = get(name)
    for problem in some(name):
        trace = task.demonstration(problem)
        assert trace.stop == "answer" and trace.steps[-1].final and len(trace.steps) >= 2
        assert not any(step.final for step in trace.steps[:-1])
        assert all(step.text.strip() and "\n" not in step.text for step in trace.steps)
        assert task.check(problem, trace.answer) is True and task.check(problem, problem.answer) is True
        assert task.demonstration(problem) == trace
        if hasattr(task, "oracle"):
            assert all(step.text.isascii() for step in trace.steps)
            assert task.oracle(problem, trace.steps) == [True] * len(trace.steps)


@every_task
def test_a_mutated_answer_is_refused(name):
    """Pins: a check that accepts whatever looks right."""
    task = get(name)
    for problem in some(name):
        for draw in range(5):
            wrong = task.mutate(problem, problem.answer, tasks.rng("mutate", problem.id, draw))
            assert task.check(problem, wrong) is False, (problem, wrong)
            if hasattr(task, "oracle"):
                steps = (*task.demonstration(problem).steps[:-1], Step(wrong, final=True))
                assert task.oracle(problem, steps) == [True] * (len(steps) - 1) + [False]


@stepwise
def test_a_wrong_step_and_all_after_it_are_flagged(name):
    """Pins: a chain that goes wrong and is called right again, which labels luck as reasoning."""
    task = tasks.get(name)
    for problem in load(name, n=60):
        steps = task.demonstration(problem).steps
        for at in range(len(steps)):
            spoilt = (*steps[:at], Step(corrupt(steps[at].text), steps[at].final), *steps[at + 1 :])
            assert task.oracle(problem, spoilt) == [True] * at + [False] * (len(steps) - at), (problem, spoilt)
            for text in ("", "hello", steps[at].text + "\n", steps[at].text + "x"):
                spoilt = (*steps[:at], Step(text, steps[at].final), *steps[at + 1 :])
                assert task.oracle(problem, spoilt)[at:] == [False] * (len(steps) - at), (problem, spoilt)
        assert task.oracle(problem, ()) == []
        assert task.oracle(problem, (steps[0], *steps))[1] is False  # the same step cannot be done twice


@every_task
def test_splits_share_no_problem(name):
    """Pins: held-out problems seen in training, in another order or under another seed."""
    task = get(name)
    keys, prompts = {}, {}
    for split, n in (("train", 1000), ("valid", 80), ("test", 80)):
        for seed in (0, 1, 2):
            for problem in load(name, split, n, seed):
                assert problem.split == split and (not drawn(task) or split == tasks.split_of(task.key(problem)))
                keys.setdefault(split, set()).add(task.key(problem))
                prompts.setdefault(split, []).append(problem.prompt)
    assert not keys["train"] & keys["valid"] and not keys["train"] & keys["test"] and not keys["valid"] & keys["test"]
    assert sum(map(len, keys.values())) > (3000 if drawn(task) else 2000)
    for train, reported in (("train", "valid"), ("train", "test"), ("valid", "test")):
        tasks.refuse_overlap(prompts[train], prompts[reported], f"{name} {train}")


@every_task
def test_ids_are_unique_and_held_out_problems_distinct(name):
    """Pins: results that merge because their ids or their questions are the same."""
    task = get(name)
    for split, n, distinct in (("train", 1000, 950), ("valid", 80, 80), ("test", 80, 80)):
        problems = load(name, split, n, 0)
        assert len({p.id for p in problems}) == n and len({task.key(p) for p in problems}) >= distinct
        assert problems[17].task == name and problems[17].id.startswith(f"{name}/{split}/")
        if drawn(task):
            assert problems[17].id == f"{name}/{split}/s0/17"
        else:  # a row has one name under every seed, so that results of two seeds can be paired
            names = {p.prompt: p.id for p in problems}
            assert all(names.get(p.prompt, p.id) == p.id for p in load(name, split, 80, 1))


@every_task
def test_a_seed_is_not_its_neighbour_shifted(name):
    """Pins: item i of seed 43 is item i+1 of seed 42 (seed + index)."""
    hardest = get(name).LEVELS[-1] if drawn(get(name)) else None  # of one level: levels in turn hide the shift
    old, new = ([p.prompt for p in load(name, "train", 200, seed, hardest)] for seed in (0, 1))
    for shift in range(-10, 11):
        pairs = zip(old[max(0, -shift) :], new[max(0, shift) :], strict=False)
        assert sum(a == b for a, b in pairs) < 10
    if drawn(get(name)):
        assert len(set(old) & set(new)) < 20


@every_task
def test_the_same_seed_gives_the_same_problems(name):
    """Pins: hash() differs between processes, and a longer load that begins with other problems."""
    task = get(name)
    assert task.load("valid", 30, 3) == task.load("valid", 30, 3) == task.load("valid", 45, 3)[:30]
    code = f"from workbench import tasks; print(ascii([p.prompt for p in tasks.get({name!r}).load('valid', 30, 3)]))"
    env = {**os.environ, "PYTHONPATH": str(HOME), "PYTHONHASHSEED": "7"}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert out.strip() == ascii([p.prompt for p in task.load("valid", 30, 3)])


@every_task
def test_levels_are_all_there_and_can_be_asked_for(name):
    task = get(name)
    assert {p.level for p in load(name, n=200 if drawn(task) else 1000)} == set(task.LEVELS)
    for level in task.LEVELS:
        problems = task.load("test", 8, 0, level)
        assert len(problems) == 8 and {p.level for p in problems} == {level}
    for bad in ({"level": 99}, {"split": "tset"}):
        with pytest.raises(WorkbenchError, match="one of"):
            task.load(**{"split": "test", "n": 1, **bad})


@every_task
def test_a_prompt_can_be_typed_in_again(name):
    """Pins: what the series trains on and what a user may ask are two languages."""
    task = get(name)
    for problem in load(name, n=100):
        assert "\n" not in problem.prompt
        again = task.parse(problem.prompt)
        assert (again.prompt, again.task, again.split) == (problem.prompt, name, "user")
        assert task.key(again) == task.key(problem)
        if hasattr(task, "oracle"):
            assert problem.prompt.isascii() and again.level == problem.level
            assert task.check(again, problem.answer) and task.check(problem, again.answer)
        else:  # nobody knows the answer, so nobody may be marked wrong
            with pytest.raises(WorkbenchError, match="no known answer"):
                task.check(again, problem.answer)


@every_task
@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_task_cannot_parse_is_one_clear_sentence(name, text):
    with pytest.raises(WorkbenchError) as error:
        tasks.get(name).parse(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400 and "example" in str(error.value)


@every_task
@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=30) | st.text("0123456789 =+-*/()>.,", max_size=20))
def test_any_text_is_parsed_or_refused_and_checked(name, text):
    task = get(name)
    try:
        problem = task.parse(text)
    except WorkbenchError:
        problem = load(name)[0]
    if hasattr(task, "oracle"):
        assert task.check(problem, task.demonstration(problem).answer)
        assert task.oracle(problem, (Step(text), Step(text, True)))[0] in (True, False)
    assert task.check(problem if problem.answer else load(name)[0], text) in (True, False)


@every_task
def test_no_answer_is_no_right_answer(name):
    task = get(name)
    for problem in load(name, n=5):
        for nothing in (None, "", " ", "\x00", problem.answer * 100_000, problem.prompt, problem.answer + "\n0"):
            assert task.check(problem, nothing) is False


# --- countdown by hand -------------------------------------------------------------------------------------------


def puzzle(prompt):
    return Problem("p", "countdown", prompt, None)


@pytest.mark.parametrize(
    "prompt, answer",
    [
        ("3 8 3 8=24", "8/(3-8/3)"),  # through a fraction: floats miss it
        ("1 5 5 5=24", "5*(5-1/5)"),
        ("2 3 4=14", "2 + 3 * 4"),
        ("2 3 4=20", "((2+3))*4"),
        ("3 5 8=0", "8-5-3"),
        ("7 2=14", "7*2"),
        ("4 8=2", " 8/4 "),
    ],
)
def test_countdown_accepts(prompt, answer):
    assert countdown.check(puzzle(prompt), answer) is True


@pytest.mark.parametrize(
    "prompt, answer, how",
    [
        ("1 5 4=6", "1.5*4", "digits glued with a point"),
        ("2 3 4=6", "23-17", "other numbers"),
        ("2 3=8", "2**3", "power"),
        ("7 2=3", "7//2", "whole division"),
        ("7 2=3", "7/2", "rounding"),
        ("3 5 8=24", "8*3", "an unused number"),
        ("3 8 3=24", "8*3*3/3", "a number used too often"),
        ("3 8=24", "3*8*1", "a number that is not there"),
        ("3 3 8=24", "3*8", "one of two equal numbers unused"),
        ("1 2 3=15", "12+3", "digits glued"),
        ("1 2 3=15", "1 2+3", "digits glued by a blank"),
        ("3 5=2", "-3+5", "a sign before a number"),
        ("3 5=8", "+3+5", "a sign before a number"),
        ("3 5=2", "5+-3", "a sign after an operation"),
        ("3 5=8", "3--5", "two signs"),
        ("3 5=8", "3+5=8", "the target written after it"),
        ("3 5=8", "03+5", "a leading zero"),
        ("3 5=8", "3+5#", "a comment"),
        ("3 5=8", "3+٥", "a digit of another script"),
        ("3 5=8", "(3+5", "an open parenthesis"),
        ("3 5=8", "3+5)", "a closed one"),
        ("3 5=15", "(3)(5)", "a product without its sign"),
        ("3 5=15", "3(5)", "the same, as a call"),
        ("3 3 8=24", "8/(3-3)", "a division by zero"),
        ("3 5=8", "3+5\n", "a line end"),
        ("3 5=8", "8", "the target alone"),
        ("3 5=8", "(" * 60 + "3+5" + ")" * 60, "too long"),
        ("1 3=3", "3*True", "python"),
        ("9 9 9 9=1", "9**9**9**9", "a bomb"),
        ("3 5=8", "", "nothing"),
    ],
)
def test_countdown_refuses(prompt, answer, how):
    """Each was accepted by some public countdown checker, or crashes a naive one."""
    assert countdown.check(puzzle(prompt), answer) is False


@pytest.mark.parametrize(
    "prompt, steps, labels",
    [
        ("3 5 8=29", ["8*3=24", "24+5=29", "!8*3+5"], [1, 1, 1]),
        ("3 5 8=29", ["3*8=24", "5+24=29", "!5+3*8"], [1, 1, 1]),  # any order, any solution
        ("3 5 8=29", ["8 * 3 = 24", "!5+3*8"], [1, 1]),  # the answer may come early: it is judged by itself
        ("3 5 8=29", ["8+5=13", "13*3=39", "!8*3+5"], [0, 0, 0]),  # right arithmetic into a dead end
        ("3 5 8=29", ["8*3=24", "24+3=27", "!8*3+5"], [1, 0, 0]),  # 3 is spent
        ("3 5 8=29", ["8*3=25", "24+5=29", "!8*3+5"], [0, 0, 0]),  # wrong arithmetic
        ("3 5 8=29", ["8*3=24", "24+5=29", "29+0=29", "!8*3+5"], [1, 1, 0, 0]),  # nothing is left to do
        ("3 5 8=29", ["8*3=24=24", "24+5=29"], [0, 0]),
        ("3 5 8=29", ["8**3=512", "!8*3+5"], [0, 0]),
        ("3 5 8=0", ["3-8=-5", "5+-5=0", "!5+3-8"], [1, 1, 1]),  # below zero is slow, not wrong
        ("3 8 3 8=24", ["8/3=(8/3)", "3-(8/3)=(1/3)", "8/(1/3)=24", "!8/(3-8/3)"], [1, 1, 1, 1]),
        ("3 8 3 8=24", ["8/3=2.67", "3-2.67=0.33"], [0, 0]),
        ("3 8 3 8=24", ["8/3=(8/0)", "8/3=(8/3)"], [0, 0]),
        ("4 4 4=1", ["4-4=0", "4/0=0", "!4/4"], [0, 0, 0]),
    ],
)
def test_countdown_oracle_by_hand(prompt, steps, labels):
    steps = [Step(text.lstrip("!"), text.startswith("!")) for text in steps]
    assert countdown.oracle(puzzle(prompt), steps) == [bool(label) for label in labels]


def test_countdown_orders_are_one_puzzle():
    """Pins: 3 5 8 in training and 8 5 3 in the test."""
    assert countdown.key(puzzle("3 5 8=29")) == countdown.key(puzzle("8 3 5=29")) != countdown.key(puzzle("8 3 5=28"))
    assert countdown.demonstration(puzzle("3 5 8=29")) == countdown.demonstration(puzzle("8 3 5=29"))


def test_countdown_levels_mean_what_they_say():
    """Slow check of what a level needs, by trying every way to play."""

    def reach(values, products, target):
        if len(values) == 1:
            return values[0] == target
        for i in range(len(values)):
            for j in range(len(values)):
                rest = [v for k, v in enumerate(values) if k not in (i, j)]
                for op in "+-*/" if products else "+-":
                    c = countdown._operate(values[i], op, values[j]) if i != j else None
                    if c is not None and reach([*rest, c], products - (op in "*/"), target):
                        return True
        return False

    for problem in load("countdown", n=60):
        numbers, target = countdown._read(problem.prompt)
        needed = next(products for products in range(4) if reach(numbers, products, target))
        assert (len(numbers), min(needed, 2 if len(numbers) == 4 else 1)) == {
            1: (3, 0), 2: (3, 1), 3: (4, 0), 4: (4, 1), 5: (4, 2)
        }[problem.level], problem  # fmt: skip


@pytest.mark.parametrize(
    "text", ["3 5 8 -> 29", "3,5,8=29", "numbers 3 5 8 = 29", "[3, 5, 8] to 29", "Use 3, 5, 8 to make 29.",
             "make 29 from 3 5 8", "target 29 with 3, 5, 8", "3 5 8, target: 29", " 3  5\t8 =29 "]
)  # fmt: skip
def test_countdown_reads_what_people_type(text):
    assert countdown.parse(text).prompt == "3 5 8=29"


@pytest.mark.parametrize("text", ["3 5 8 = 9999", "1 1 1 1 1 = 999", "2 4 6 8 = 997"])
def test_countdown_names_a_puzzle_without_solution(text):
    """Pins: a search that spends its whole budget on what cannot be done."""
    with pytest.raises(WorkbenchError, match="has no solution"):
        countdown.parse(text)


@pytest.mark.skipif(not (DATA / "countdown").exists(), reason="no shared data")
def test_countdown_agrees_with_published_solutions():
    """200 puzzles of another house with a solution each: the checker, the step oracle and the search accept them."""
    pandas = pytest.importorskip("pandas")
    for row in pandas.read_parquet(DATA / "countdown" / "uft_countdown_test.parquet").head(200).itertuples():
        problem = puzzle(f"{' '.join(map(str, row.nums))}={row.target}")
        *steps, last = (line.strip() for line in row.hint)
        answer = last.removeprefix("Therefore, the final equation is ")
        assert countdown.check(problem, answer)
        assert all(countdown.oracle(problem, [*map(Step, steps), Step(answer, True)]))
        assert countdown.check(problem, countdown.demonstration(problem).answer)


@pytest.mark.skipif(not (DATA / "game24").exists(), reason="no shared data")
def test_countdown_agrees_with_the_grades_of_10000_answers():
    """GPT-4 on 100 puzzles, 100 samples each, graded by its authors with a computer algebra system: 403 are right."""
    with open(DATA / "game24" / "24.csv") as file:
        puzzles = [row["Puzzles"] + "=24" for row in csv.DictReader(file)]
    for prompt in puzzles[::5]:
        assert countdown.check(puzzle(prompt), countdown.demonstration(puzzle(prompt)).answer)
    right = 0
    with open(DATA / "game24" / "gpt-4_0.7_naive_cot_sample_100_start900_end1000.json") as file:
        for row in json.load(file):
            for sample, info in zip(row["ys"], row["infos"], strict=True):
                answer = sample.strip().split("\n")[-1].lower().replace("answer: ", "").split("=")[0]
                verdict = countdown.check(puzzle(puzzles[row["idx"]]), answer)
                assert verdict is bool(info["r"]), (puzzles[row["idx"]], sample)
                right += verdict
    assert right == 403
