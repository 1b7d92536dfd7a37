"""A tiny notebook stands for the series, so that what is tested is the machinery."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workbench import series
from workbench.lanes import JobFailed
from workbench.types import WorkbenchError

ROOT = Path(__file__).resolve().parents[1]

TINY = '''# %% [markdown]
# # How big is it?
#
# `nano` 0.2 min, 1 GB; `gpu` 3 min

# %% tags=["setup"]
import json
import math
import os
import sys
import time
from pathlib import Path

# %% tags=["parameters"]
profile = "nano"
runs = "runs"
seed = 0
radius = 2.0
trouble = ""

# %% tags=["solution"]
def area(r):
    """The area of a circle."""
    ### BEGIN SOLUTION pi times the square
    return math.pi * r**2
    ### END SOLUTION


# %% tags=["mutant"]
def area(r):
    return math.pi * r


# %% tags=["check"]
assert area(2) == 4 * math.pi

# %%
found = {"area": area(radius), "seed": seed, "python": sys.executable}
if trouble == "raise":
    raise ValueError("the first line\\nthe second")
if trouble == "die":
    os._exit(3)
if trouble == "sleep":
    Path(runs, "pid").write_text(str(os.getpid()))
    time.sleep(60)

# %%
_ = Path(runs, "found.json").write_text(json.dumps(found))
found["seed"]
'''


@pytest.fixture
def root(tmp_path):
    (tmp_path / "notebooks" / "src").mkdir(parents=True)
    (tmp_path / "runs").mkdir()
    (tmp_path / "notebooks" / "src" / "00_tiny.py").write_text(TINY)
    return tmp_path


def edit(root, old, new, name="00_tiny"):
    path = root / "notebooks" / "src" / f"{name}.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def call(function, root, **parameters):
    return (
        "from pathlib import Path\nfrom workbench import series\n"
        f"series.{function}('tiny', parameters={parameters!r}, root=Path({str(root)!r}))"
    )


def sources(path):
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]


# --- building ----------------------------------------------------------------------------------------------------


def test_build_makes_three_forms_and_knows_when_they_are_current(root):
    made = series.build(root)
    assert made == ["notebooks/00_tiny.ipynb", "notebooks/labs/00_tiny.ipynb", "notebooks/marimo/00_tiny_mo.py"]
    assert series.build(root, check=True) == []
    edit(root, "radius = 2.0", "radius = 3.0")
    assert series.build(root, check=True) == made, "check names what is stale"
    assert series.build(root, check=True) == made, "and writes nothing"
    assert series.build(root) == made and series.build(root) == []


def test_building_again_gives_the_same_bytes(root):
    series.build(root)
    paths = [path for path in (root / "notebooks").rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in paths}
    for path in paths:
        if path.parent.name != "src":
            path.unlink()
    series.build(root)
    assert {path: path.read_bytes() for path in paths} == before


def test_the_plain_form(root):
    import nbformat

    series.build(root)
    book = nbformat.read(root / "notebooks" / "00_tiny.ipynb", as_version=4)
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    assert [tag for cell in book.cells for tag in cell.metadata.get("tags", [])] == [
        "setup",
        "parameters",
        "solution",
        "check",
    ]
    assert all(not cell.outputs for cell in book.cells if cell.cell_type == "code")
    assert len({cell.id for cell in book.cells}) == len(book.cells)
    text = (root / "notebooks" / "00_tiny.ipynb").read_text()
    assert "SOLUTION" not in text and "math.pi * r**2" in text and "math.pi * r\\n" not in text


def test_the_lab_has_stubs_and_no_answer(root):
    series.build(root)
    text = (root / "notebooks" / "labs" / "00_tiny.ipynb").read_text()
    assert "r**2" not in text and "SOLUTION" not in text
    lab = next(source for source in sources(root / "notebooks" / "labs" / "00_tiny.ipynb") if "def area" in source)
    assert lab.endswith('    raise NotImplementedError("your turn: pi times the square")')
    assert '"""The area of a circle."""' in lab
    assert any("assert area(2)" in s for s in sources(root / "notebooks" / "labs" / "00_tiny.ipynb")), "checks stay"


def test_equal_cells_have_ids_of_their_own(root):
    edit(root, "# %%\n_ = Path", "# %%\nprint(1)\n\n# %%\nprint(1)\n\n# %%\n_ = Path")
    series.build(root)
    cells = json.loads((root / "notebooks" / "00_tiny.ipynb").read_text())["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)


def test_what_a_cell_binds_and_looks_up():
    """Bugs: a class's own names, a pattern's, and those that a function sends out with `global`, taken for another
    cell's."""
    cell = """
class A:
    _x = 1
    y = _x + seen
    @property
    def w(self): return late
    @w.setter
    def w(self, value): pass
match a:
    case [_a, *_b]: print(_a, _b)
    case {"k": _c, **_d}: print(_c, _d)
def f():
    global _g
    _g = 1
"""
    assert series.bound_and_read(ast.parse(cell)) == (
        {"A", "_a", "_b", "_c", "_d", "f", "_g"},
        {"__name__", "seen", "property", "late", "a", "print", "_a", "_b", "_c", "_d"},
    )


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("found = {", "seed = 1\nfound = {", "assigns 'seed' again"),
        ("found = {", "import math\nfound = {", "assigns 'math' again"),
        ("found = {", "for seed in []:\n    pass\nfound = {", "assigns 'seed' again"),
        ("found = {", "seed += 1\nfound = {", "assigns 'seed' again"),
        ('found["seed"]\n', 'found["seed"] = 3\n', "changes 'found', which belongs to cell 7"),
        ('found["seed"]\n', "found.update(seed=3)\n", "changes 'found'"),
        ('found["seed"]\n', "print(_)\n\n# %%\ndef f():\n    return _\n", "cell 9 reads '_'"),
        (
            "found = {",
            "def late():\n    return first\n\n\n# %%\nfirst = late()\nfound = {",
            "cells 7, 8 wait for one another",
        ),
        ("found = {", "%matplotlib inline\nfound = {", "magic"),
        ("found = {", "!pip list\nfound = {", "magic"),
        ("found = {", "found = {{", "does not parse"),
        ("found = {", "mo = 1\nfound = {", "'mo'"),
        ("seed = 0", "seed = int(3)", "parameter 'seed' is not a literal"),
        ('tags=["parameters"]', 'tags=["setup"]', "no cell is tagged 'parameters'"),
        ('tags=["parameters"]', 'tags=["paramters"]', "unknown tag 'paramters': did you mean 'parameters'"),
        ('# %% tags=["mutant"]\ndef area(r):\n    return math.pi * r\n', "", "a check whose solution has no mutant"),
        ("    ### END SOLUTION\n", "", "BEGIN or END SOLUTION without its partner"),
    ],
)
def test_lint_names_what_would_mean_something_else(root, old, new, said):
    edit(root, old, new)
    with pytest.raises(WorkbenchError, match=re.escape(said)):
        series.build(root)
    assert not (root / "notebooks" / "00_tiny.ipynb").exists()


@pytest.mark.parametrize(
    "code",
    [
        "_i = 1; print(_i)",
        "[_x for _x in range(3)]",
        "[_x for x in '12' if (_x := x)]",
        "def g(seed):\n    seed = 2",
        "print(seed.x.y)",
    ],
)
def test_lint_lets_temporaries_and_inner_names_be(root, code):
    edit(root, "found = {", f"{code}\nfound = {{")
    series.build(root)


def test_exercises_carry_all_that_a_check_needs(root):
    (exercise,) = series.exercises("00_tiny", root)
    right, wrong = {}, {}
    exec(exercise.before + "\n" + exercise.solution + "\n" + exercise.check, right)
    with pytest.raises(AssertionError):
        exec(exercise.before + "\n" + exercise.mutant + "\n" + exercise.check, wrong)


# --- finding and parameters --------------------------------------------------------------------------------------


def test_find_by_number_name_and_path(root):
    for name in ("0", "00", "tiny", "00_tiny", "00_t", "notebooks/src/00_tiny.py", "notebooks/marimo/00_tiny_mo.py"):
        assert series.find(name, root) == "00_tiny"
    with pytest.raises(WorkbenchError, match="unknown notebook 'tinny': did you mean"):
        series.find("tinny", root)


def test_a_misspelt_parameter_is_refused_before_anything_runs(root):
    with pytest.raises(WorkbenchError, match="unknown parameter 'radios': did you mean 'radius'"):
        series.run("tiny", parameters={"radios": 3}, root=root)
    with pytest.raises(WorkbenchError, match="unknown profile 'nana': did you mean 'nano'"):
        series.run("tiny", profile="nana", root=root)
    assert not list((root / "runs").iterdir())


@pytest.mark.parametrize(
    "value, default, wanted",
    [("1e-5", 0.1, 1e-5), ("3", 0.1, 3.0), (3, 0.1, 3.0), ("7", 1, 7), ("7", "a", "7"), ("true", False, True)]
    + [("[1, 2]", [0], [1, 2]), ("none", 3, None), ("1e-5", "x", "1e-5"), ("5", None, 5)],
)
def test_values_take_the_type_of_the_default(value, default, wanted):
    assert series.coerce("p", value, default) == wanted
    assert type(series.coerce("p", value, default)) is type(wanted)


@pytest.mark.parametrize("value, default", [("three", 1), ("1.5", 1), (True, 1), ("1", True), ("x", 0.5), ("3", [1])])
def test_values_of_another_type_are_refused(value, default):
    with pytest.raises(WorkbenchError, match="parameter p="):
        series.coerce("p", value, default)


# --- running -----------------------------------------------------------------------------------------------------


def test_run_skip_and_run_again_when_something_changed(root):
    said = []
    status = series.run("tiny", parameters={"radius": "1e0"}, root=root, say=said.append)
    assert status["ok"] and status["seconds"] > 0 and status["peak_mb"] > 10
    found = json.loads((root / "runs" / "found.json").read_text())
    assert found["area"] == pytest.approx(3.14159, abs=1e-4), "the parameter arrived, as a number"
    assert found["python"] == sys.executable, "the kernel is this interpreter, whatever `python3` names"
    executed = root / "runs" / "nano" / "notebooks" / "00_tiny.ipynb"
    assert json.loads(executed.read_text())["cells"][-1]["outputs"][0]["data"]["text/plain"] == ["0"]

    (root / "runs" / "found.json").unlink()
    again = series.run("tiny", parameters={"radius": 1.0}, root=root, say=said.append)
    assert again == status and said[-1] == "00_tiny: finished before"
    assert not (root / "runs" / "found.json").exists()

    assert not series.plan("tiny", parameters={"radius": 2}, root=root).done, "another parameter is another run"
    edit(root, "How big", "How large")
    assert not series.plan("tiny", parameters={"radius": 1}, root=root).done, "a changed source runs again"
    assert series.build(root, check=True) == [], "and was built first"


@pytest.mark.parametrize("trouble, said", [("raise", "ValueError: the first line the second"), ("die", "kernel ended")])
def test_a_failure_is_recorded_and_told_in_one_sentence(root, trouble, said):
    with pytest.raises(JobFailed, match=said) as error:
        series.run("tiny", parameters={"trouble": trouble}, root=root)
    assert str(root / "runs" / "nano" / "notebooks" / "00_tiny.ipynb") in str(error.value)
    assert "\n" not in str(error.value)
    status = json.loads((root / "runs" / "nano" / "notebooks" / "00_tiny.json").read_text())
    assert status["ok"] is False and said in status["error"]
    assert not series.plan("tiny", parameters={"trouble": trouble}, root=root).done


def test_killed_midway_is_not_finished_and_leaves_no_kernel(root):
    series.build(root)
    process = subprocess.Popen(
        [sys.executable, "-c", call("run", root, trouble="sleep")], cwd=ROOT, start_new_session=True
    )
    pid = root / "runs" / "pid"
    deadline = time.monotonic() + 120
    while not (pid.exists() and pid.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads((root / "runs" / "nano" / "notebooks" / "00_tiny.json").read_text())["ok"] is None
    assert not series.plan("tiny", parameters={"trouble": "sleep"}, root=root).done
    deadline = time.monotonic() + 20
    while _alive(int(pid.read_text())):
        assert time.monotonic() < deadline, "a kernel that lives on would write into the next run"
        time.sleep(0.2)


def _alive(pid):
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/status").read_text().split("State:")[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_status_cut_short_counts_as_not_finished(tmp_path):
    (tmp_path / "a.json").write_text('{"ok": tr')
    assert series.read_status(tmp_path / "a.json") == {} == series.read_status(tmp_path / "b.json")


def test_both_forms_of_a_notebook_give_the_same(root):
    given = {"radius": 5.0, "seed": 7}
    series.run("tiny", parameters=given, root=root)
    found = json.loads((root / "runs" / "found.json").read_text())
    (root / "runs" / "found.json").unlink()
    subprocess.run([sys.executable, "-c", call("run_marimo", root, **given)], cwd=ROOT, check=True)
    assert json.loads((root / "runs" / "found.json").read_text()) == found
    assert found["seed"] == 7


# --- the whole -----------------------------------------------------------------------------------------------------


def test_reproduce_twice(root):
    (root / "notebooks" / "src" / "01_next.py").write_text(TINY.replace("How big", "How wide"))
    said = []
    ran, peak = series.reproduce(root=root, lanes=2, say=said.append)
    assert ran == 2 and peak > 0 and all(series.plan(name, root=root).done for name in ("00_tiny", "01_next"))
    assert said[0] == "2 notebooks at profile nano, 2 to run, about 0:12", (
        "by the minutes stated in the notebooks, two at a time"
    )
    code = (
        "import sys, time\nfrom workbench import series\nfrom pathlib import Path\n"
        f"series.reproduce(root=Path({str(root)!r}))\n"
        "print([m for m in ('torch', 'papermill', 'jupytext', 'plotly') if m in sys.modules], time.process_time())"
    )
    out = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).splitlines()
    assert out[0].endswith("finished before")
    assert out[-1].startswith("[] ") and float(out[-1][3:]) < 2, "when all is done nothing heavy is loaded"


def test_reproduce_stops_at_the_first_failure(root):
    edit(root, 'trouble = ""', 'trouble = "raise"')
    (root / "notebooks" / "src" / "01_next.py").write_text(TINY)
    with pytest.raises(JobFailed, match="00_tiny"):
        series.reproduce(root=root)
    assert not (root / "runs" / "nano" / "notebooks" / "01_next.json").exists()


def test_code_hash_follows_imports(root):
    package = root / "workbench"
    (package / "tasks").mkdir(parents=True)
    files = {"__init__": "", "near": "from . import far", "far": "", "other": "", "tasks/__init__": "", "tasks/a": ""}
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    edit(root, "import json\n", "import json\nfrom workbench.near import x\nfrom workbench import tasks\n")
    before = series.code_hash("00_tiny", root)
    (package / "other.py").write_text("y = 1")
    assert series.code_hash("00_tiny", root) == before, "a module out of reach does not matter"
    for name in ("near", "far", "tasks/a"):
        (package / f"{name}.py").write_text(files[name] + "\nz = 1")
        assert series.code_hash("00_tiny", root) != before, f"{name} matters"
        (package / f"{name}.py").write_text(files[name])


def test_live_line_tells_time_gone_and_left(tmp_path, monkeypatch):
    monkeypatch.setattr(series.time, "monotonic", lambda: 1020.0)
    with (tmp_path / "log").open("w") as log:
        live = series.Live("00_tiny", expected=60, log=log, say=print)
        live.start = 1000.0
        assert live.line() == "00_tiny: 0:20 gone, about 0:40 left"
        live.write("step 1\rstep 2\r")
        assert live.last == "step 2"
