"""Problems that come from outside: rows of data sets, templates of a package, and what must never be trained on."""

import json
import re
import string
import sys
import types
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench import tasks
from workbench.tasks import countdown, gsm8k, gsm_symbolic, math
from workbench.types import Problem, WorkbenchError

DATA = Path(__file__).parents[2] / "shared" / "data"
real = pytest.mark.skipif(DATA not in tasks.folders() or not (DATA / "math").exists(), reason="no shared data")
package = pytest.mark.skipif(
    not __import__("importlib.util").util.find_spec("reasoning_gym"), reason="needs reasoning-gym"
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty data folder of its own, and no hub."""
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    monkeypatch.setitem(sys.modules, "datasets", None)
    for task in (gsm8k, math):
        task._table.cache_clear()
    yield tmp_path
    for task in (gsm8k, math):
        task._table.cache_clear()


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def pens(n):
    return {
        "question": f"Ann has {n} boxes of 4 pens.\nHow many?",
        "answer": f"{n}*4=<<{n}*4={4 * n}>>{4 * n}\n#### {4 * n}",
    }


def sums(n):
    return {"problem": f"Compute ${n}+1$.", "solution": f"It is\n\n$\\boxed{{{n + 1}}}$.", "level": "Level 3"}


# --- where rows come from ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task, hub", [(gsm8k, "openai/gsm8k"), (math, "HuggingFaceH4/MATH-500")])
def test_missing_data_names_both_remedies(home, task, hub):
    """Pins: a bare FileNotFoundError for a folder that nobody was told about."""
    with pytest.raises(tasks.Missing) as error:
        task.load("test", 1)
    for word in (str(home), "WORKBENCH_DATA", "test.jsonl", "pip install datasets", hub):
        assert word in str(error.value)


def test_the_hub_is_asked_where_no_file_is(home, monkeypatch):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return [pens(n) for n in (range(5) if split == "test" else range(100))]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert len(gsm8k.load("test", 5)) == 5 and len(gsm8k.load("train", 80)) == 80
    assert asked == [gsm8k.HUB["test"], gsm8k.HUB["rest"]]  # once each
    gsm8k._table.cache_clear()
    write(home / "gsm8k" / "test.jsonl", [pens(7)])
    assert [p.answer for p in gsm8k.load("test", 1)] == ["28"] and asked[2:] == [gsm8k.HUB["rest"]]


def test_a_hub_that_fails_is_missing_data(home, monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(tasks.Missing, match="no route.*put test.jsonl"):
        gsm8k.load("test", 1)


def test_a_bad_row_is_left_out_and_said(home):
    """Pins: one broken line that ends a run, and rows that vanish without a word."""
    bad = [
        "{",
        "[]",
        '{"question": "?"}',
        {**pens(3), "answer": "no mark"},
        {**pens(3), "answer": "1 #### two"},
        "[" * 9999,
        {**pens(3), "question": 5},
        {**pens(3), "question": " "},
    ]
    write(home / "gsm8k" / "test.jsonl", [pens(1), *bad, pens(2)])
    write(home / "gsm8k" / "train.jsonl", [pens(n) for n in range(3, 40)])
    with pytest.warns(UserWarning, match=r"8 rows are no problem and left out, the first test.jsonl:2"):
        assert {p.answer for p in gsm8k.load("test", 2)} == {"4", "8"}
    write(home / "gsm8k" / "test.jsonl", bad)
    gsm8k._table.cache_clear()
    with pytest.raises(WorkbenchError, match="no row is a problem, the first is test.jsonl:1"):
        gsm8k.load("test", 1)


def test_a_training_row_that_is_a_test_row_is_left_out(home):
    """Pins: the same question in other spacing and case in both files."""
    again = {**pens(1), "question": "ann has 1 boxes of 4 pens, how many"}
    write(home / "gsm8k" / "test.jsonl", [pens(1), again])
    write(home / "gsm8k" / "train.jsonl", [again, *(pens(n) for n in range(2, 60))])
    assert len(gsm8k._table()) == 1 + 58
    with pytest.raises(WorkbenchError, match="gsm8k has 1 test problems: ask for fewer than 2"):
        gsm8k.load("test", 2)
    assert {p.answer for p in gsm8k.load("test", 1)} == {"4"}


def test_names_and_splits_do_not_depend_on_the_order_of_rows(home):
    """Pins: ids that are line numbers, so that results of two copies of a data set are paired wrongly."""
    found = []
    for order in (1, -1):
        write(home / "gsm8k" / "test.jsonl", [pens(n) for n in range(5)][::order])
        write(home / "gsm8k" / "train.jsonl", [pens(n) for n in range(5, 60)][::order])
        gsm8k._table.cache_clear()
        found.append({p.prompt: p for split, n in (("test", 5), ("train", 45)) for p in gsm8k.load(split, n, 3)})
    assert found[0] == found[1]


def test_another_test_set_is_not_taken_for_math_500(home):
    """Pins: the 5,000 of Hendrycks et al. under the name of the 500."""
    write(home / "math" / "test.jsonl", [sums(n) for n in range(501)])
    write(home / "math" / "train.jsonl", [sums(n) for n in range(501, 600)])
    with pytest.raises(WorkbenchError, match="501 and not MATH-500"):
        math.load("test", 1)
    write(home / "math" / "test.jsonl", [sums(n) for n in range(500)])
    assert [step.text for step in math.demonstration(math.load("test", 1, 0, 3)[0]).steps][0] == "It is"


def test_a_row_without_solution_has_no_demonstration(home):
    with pytest.raises(WorkbenchError, match="no worked solution"):
        tasks.worked(
            Problem("p", "math", "Compute 1.", "1"), {"compute 1": (None, tasks.Row("Compute 1.", "1", 1, ()))}
        )
    with pytest.raises(WorkbenchError, match="not drawn by `load`"):
        gsm_symbolic.demonstration(gsm_symbolic.parse("Ann has 3 pens. How many?"))


def test_gsm_symbolic_says_what_it_needs(monkeypatch):
    gsm_symbolic._library.cache_clear(), gsm_symbolic._templates.cache_clear()
    monkeypatch.setitem(sys.modules, "reasoning_gym.arithmetic", None)
    with pytest.raises(tasks.Missing, match="pip install reasoning-gym"):
        gsm_symbolic.load("test", 1)


# --- answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["18", "18.00", "$18", r"\$18", "18%", r"18\%", "18.", " 18 ", "+18", "£18", "018"])
def test_numbers_that_are_accepted(answer):
    assert tasks.same_number(answer, "18") is True


@pytest.mark.parametrize(
    "answer", ["9*2", "36/2", "2*3^2", "18 or 19", "x=18", "1 8", "1\n8", "1,8", "118", "180", "-18", "18.0.0", "",
               "$", ".", "18 ducks", "1e1", "٣", "18\x00", "\ud800", "$" * 9999, "9" * 99_999, None, 18]
)  # fmt: skip
def test_numbers_that_are_refused(answer):
    """Pins: a sum left undone, the first number of a text, or digits glued together, all of which were rewarded."""
    assert tasks.same_number(answer, "18") is False


@pytest.mark.parametrize("solution", ["no box", r"\boxed{1", r"\boxed{\frac{1}{2}"])
def test_a_solution_without_a_whole_box_is_no_answer(solution):
    with pytest.raises(ValueError):
        math.boxed(solution)


# --- the real data -----------------------------------------------------------------------------------------------


@real
def test_splits_are_the_official_ones():
    """Train and valid too: whoever changes `plain` moves problems between them, and sees it here."""
    lines = (DATA / "gsm8k" / "test.jsonl").read_text().splitlines()
    assert {p.prompt for p in gsm8k.load("test", 1319)} == {" ".join(json.loads(x)["question"].split()) for x in lines}
    assert len(gsm8k.load("train", 6711)) + len(gsm8k.load("valid", 762)) == 7473
    lines = (DATA / "math" / "math500_prm800k_split.jsonl").read_text().splitlines()
    assert {p.prompt for p in math.load("test", 500)} == {" ".join(json.loads(x)["problem"].split()) for x in lines}
    assert len(math.load("train", 4032)) + len(math.load("valid", 468)) == 4500


@real
def test_boxed_finds_the_500_published_answers():
    for line in (DATA / "math" / "math500_prm800k_split.jsonl").read_text().splitlines():
        assert math.boxed(json.loads(line)["solution"]) == json.loads(line)["answer"]


@real
def test_a_worked_solution_as_a_chain():
    problem = next(p for p in gsm8k.load("test", 1319) if p.prompt.startswith("Josh decides to try flipping"))
    assert [step.text for step in gsm8k.demonstration(problem).steps] == [
        "The cost of the house and repairs came out to 80,000+50,000=$130,000",
        "He increased the value of the house by 80,000*1.5=120,000",
        "So the new value of the house is 120,000+80,000=$200,000",
        "So he made a profit of 200,000-130,000=$70,000",
        "70000",
    ]
    assert problem.level == 4


# --- contamination -----------------------------------------------------------------------------------------------


def instructions(name):
    pandas = pytest.importorskip("pandas")
    return pandas.read_parquet(DATA / "prm800k" / name, columns=["instruction"])["instruction"]


@real
@pytest.mark.skipif(not (DATA / "prm800k").exists(), reason="no shared data")
def test_prm800k_phase_1_test_lies_inside_math_500():
    """A known fact of the data: all 101 are reported on; of phase-1 train none is, nor of the test of MATH."""
    reported = [p.prompt for p in math.load("test", 500)]
    test = instructions("phase1_test.stepwise-critic.parquet")
    assert len(tasks.overlap(iter(test), reported)) == test.nunique() == 101
    with pytest.raises(WorkbenchError, match="101 problems of PRM800K phase-1 test are also reported on, the first '"):
        tasks.refuse_overlap(test, reported, "PRM800K phase-1 test")
    train = instructions("phase1_train.stepwise.parquet")
    assert train.nunique() == 900
    tasks.refuse_overlap(train, reported, "PRM800K phase-1 train")


SAME = [
    ("What is $2+3$?", "what  is 2 + 3"),
    (r"Find $\dfrac{1}{2}\,x$.", r"find \(\frac{1}{2} x\)"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
    ("He has 1,000 pens!", "He has 1000 pens."),
    (r"It costs \$5 and 10\% of $x$", "it costs $5 and 10% of x"),
    ("Ann’s “box”", 'Ann\'s "box"'),
    ("ﬁnd\u00a0it", "find it"),
    ("\\begin{cases} a \\\\\n b", r"\begin{cases}a\\ b"),
]
OTHER = [
    ("2+3", "2-3"),
    ("1.5", "15"),
    ("1 5", "15"),
    ("x^2", "x_2"),
    ("3 5 8=29", "35 8=29"),
    ("f(2)", "f(-2)"),
    (r"\frac{1}{2}", r"\frac{2}{1}"),
    ("1,2", "12"),
    ("a < b", "a > b"),
    ("What is 3!+2?", "What is 3+2?"),
    (r"a \\ b", "a b"),
]


@pytest.mark.parametrize("one, two", SAME)
def test_one_question_printed_twice(one, two):
    assert tasks.plain(one) == tasks.plain(two) and tasks.overlap([one], [two]) == [one]


@pytest.mark.parametrize("one, two", OTHER)
def test_two_questions_that_look_alike(one, two):
    """Pins: a guard that drops signs or glues digits, so that training rows are refused for nothing."""
    assert tasks.overlap([one], [two]) == []


@given(st.text(string.printable, max_size=40))
def test_case_and_white_space_do_not_count(text):
    assert tasks.plain(text) == tasks.plain(f" \n{text.upper()}  ") == tasks.plain(text.replace(" ", "\t "))


def test_overlap_reads_one_side_as_a_stream_and_names_each_once():
    def stream():
        for n in range(100_000):
            yield f"What is {n % 1000}+1?"
        assert len(seen) == 1  # nothing was kept for later

    seen = [None]
    assert tasks.overlap(stream(), ["what is 7 + 1", "what is 2000 + 1"]) == ["What is 7+1?"]
    assert tasks.overlap(["?!", ""], ["...", ""]) == []  # nothing in common but nothing


# --- GSM-symbolic ------------------------------------------------------------------------------------------------


def wrong_sums(lines):
    """The equations of a worked solution that can be read as numbers, where they are wrong by more than rounding."""
    for line in lines:
        parts = re.sub(r"(?<=[0-9]),(?=[0-9]{3})|[£€$]", "", line).split("=")
        for left, right in zip(parts, parts[1:], strict=False):
            unit = r"(?<=[0-9)]) [A-Za-z][A-Za-z -]*(?:/[A-Za-z]+)?(?= *[-+*/x]| *$)"
            left = re.sub(unit, "", re.split(r"[:,%]|\. ", left)[-1])
            done = re.search(r"(?:^| )([0-9(][0-9.+*/x() -]*[-+*/x][0-9.+*/x() -]*[0-9)]) *$", left)
            value = re.match(r" *(-?[0-9]+(?:\.[0-9]+)?)(?![0-9./%]* *[-+*/x%])", right)
            if done and value:
                whole = re.sub(r"([0-9]+)\.([0-9]+)", lambda m: f"({int(m[1] + m[2])}/{10 ** len(m[2])})", done[1])
                try:
                    exact = countdown._worth(whole.replace("x", "*"))[0]
                except SyntaxError:
                    continue
                yield (done[1], value[1]) if abs(exact - Fraction(value[1])) > Fraction(1, 50) else None


@package
def test_worked_solutions_of_templates_add_up():
    """Pins: gold answers that are wrong, and rewarded: seven templates that the package trusts cut `2.5` to 2."""
    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import tasks_ok

    found = {k: [x for s in range(60) for x in wrong_sums(gsm_symbolic._example(k, Random(s))[2])] for k in tasks_ok}
    assert {k for k, sums in found.items() if any(sums)} <= gsm_symbolic.WRONG
    assert {k for k, sums in found.items() if any(sums)} >= {2, 4, 49, 75, 99}
    assert {k for k, sums in found.items() if not sums} == {53, 83}  # percentages, and algebra
    assert sum(map(len, found.values())) > 10_000


@package
def test_gsm_symbolic_draws_are_clean_and_end_in_their_answer():
    for problem in gsm_symbolic.load("train", 400, seed=3):
        trace = gsm_symbolic.demonstration(problem)
        assert not re.search(r"[0-9]\.[0-9]{4}", " ".join([problem.prompt, *(step.text for step in trace.steps)]))
        assert float(problem.answer) >= 0 and min(len(trace.steps) - 1, 6) == problem.level


@package
def test_another_name_is_the_same_question():
    """Pins: held-out problems that were seen in training about somebody else."""
    train = {gsm_symbolic.key(p) for p in gsm_symbolic.load("train", 500)}
    prompt = gsm_symbolic.load("train", 500)[3].prompt
    assert gsm_symbolic.key(Problem("p", "gsm_symbolic", prompt.replace("e", "a"), None)) in train
