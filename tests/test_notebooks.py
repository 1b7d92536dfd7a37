"""Every check in every notebook passes with the solution and fails with its mutant."""

from __future__ import annotations

from collections import Counter

import pytest

from workbench import series

EXERCISES = [exercise for name in series.names() for exercise in series.exercises(name)]


def outcome(exercise: series.Exercise, middle: str) -> str:
    space = {"__name__": "notebook"}
    exec(compile(exercise.before, f"{exercise.notebook}: set-up", "exec"), space)
    exec(compile(middle, f"{exercise.notebook}: solution", "exec"), space)
    try:
        exec(compile(exercise.check, f"{exercise.notebook}: cell {exercise.cell}", "exec"), space)
    except AssertionError:
        return "fails"
    return "passes"


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: f"{e.notebook}-cell{e.cell}")
def test_check_knows_right_from_wrong(exercise):
    assert outcome(exercise, exercise.solution) == "passes"
    assert outcome(exercise, exercise.mutant) == "fails", "the check accepts the mutant"


@pytest.mark.parametrize("name", series.names())
def test_two_exercises_or_more(name):
    """Solutions between BEGIN and END SOLUTION that a check looks at."""
    sources = {cell.source for cell in series.read(name).cells if series.BEGIN in cell.source}
    checked = Counter(e.solution for e in series.exercises(name))
    assert len([source for source in sources if series.solved(source) in checked]) >= 2


def test_outcome_can_tell():
    exercise = series.Exercise("n", 1, "a = 1", "def f(): return a", "def f(): return 2", "assert f() == 1")
    assert outcome(exercise, exercise.solution) == "passes"
    assert outcome(exercise, exercise.mutant) == "fails"
