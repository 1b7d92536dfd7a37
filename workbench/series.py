"""The notebook series: build every form from one source, run it under papermill, reproduce the whole study.

A source is percent-format Python, `notebooks/src/NN_name.py`. Cell tags carry the meaning:

    parameters  literals only: profile, runs, seed and the notebook's own; `run` may replace them
    setup       cheap imports and constants: all that a check may need besides the solutions
    solution    code under check; what stands between BEGIN and END SOLUTION is a stub in the lab
    mutant      a wrong version of the solution above it; in no build, a test proves that the check catches it
    check       assertions about the solutions above it

Left out: syncing back. Builds are made from sources, never the other way round.
"""

from __future__ import annotations

import ast
import dis
import hashlib
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import CodeType
from typing import Any

from . import claims, pretrained
from .lanes import Job, JobFailed, abreast, clock, memory, over, wall
from .pipeline import PROFILES
from .runs import write
from .types import WorkbenchError, unknown

ROOT = Path(__file__).resolve().parents[1]
FIGURES = {"PLOTLY_RENDERER": "plotly_mimetype"}  # as data: images are drawn later, all by one browser
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
TAGS = {"parameters", "setup", "solution", "mutant", "check"}
MUTATORS = {"append", "extend", "update", "add", "insert", "pop", "clear", "sort", "remove", "setdefault"}


def runs_folder(runs: str | Path | None = None, root: Path = ROOT) -> Path:
    return Path(runs).resolve() if runs else root / "runs"  # on the command line a relative folder is the caller's


def check_profile(profile: str) -> str:
    if profile not in (*PROFILES, *pretrained.NAMES):
        raise unknown("profile", profile, (*PROFILES, *pretrained.NAMES))
    return profile


# --- sources -----------------------------------------------------------------------------------------------------


def names(root: Path = ROOT) -> list[str]:
    """The series in order: the stems of `notebooks/src/NN_name.py`."""
    return sorted(path.stem for path in (root / "notebooks" / "src").glob("[0-9][0-9]_*.py"))


def find(name: str, root: Path = ROOT) -> str:
    """The notebook meant by `4`, `04`, `04_prm`, `prm` or a path to it."""
    known, key = names(root), re.sub(r"_mo$", "", Path(name).stem)
    hits = [stem for stem in known if key in (stem, stem[3:]) or stem[:2] == key.zfill(2)]
    hits = hits or [stem for stem in known if stem.startswith(key) or stem[3:].startswith(key)]
    if len(hits) != 1:
        raise unknown("notebook", name, known)
    return hits[0]


def read(name: str, root: Path = ROOT):
    """The source as a notebook of nbformat 4.5, mutants included, outputs never."""
    import jupytext

    path = root / "notebooks" / "src" / f"{name}.py"
    book = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
    for cell in book.cells:
        strange = tags(cell) - TAGS
        if strange:
            raise WorkbenchError(f"{path.name}: {unknown('tag', sorted(strange)[0], TAGS)}")
    return book


def tags(cell: Mapping[str, Any]) -> set[str]:
    return set(cell["metadata"].get("tags", ()))


def title(cells: Iterable[Mapping[str, Any]]) -> str:
    """The first heading: the question that the notebook answers."""
    for cell in cells:
        found = cell["cell_type"] == "markdown" and re.search(r"^# +(.+)$", _source(cell), re.MULTILINE)
        if found:
            return found[1].strip()
    return "untitled"


def _source(cell: Mapping[str, Any]) -> str:
    return "".join(cell["source"])  # a string in memory, a list of lines on disk


# --- building ----------------------------------------------------------------------------------------------------


def build(root: Path = ROOT, check: bool = False, only: str | None = None) -> list[str]:
    """Write what is out of date (or, with `check`, only name it); returns those paths relative to `root`."""
    stale = []
    for name in [only] if only else names(root):
        for path, text in products(name, root).items():
            if path.exists() and _comparable(path.read_text(encoding="utf-8")) == _comparable(text):
                continue
            stale.append(path.relative_to(root).as_posix())
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path, text)
    return stale


def products(name: str, root: Path = ROOT) -> dict[Path, str]:
    """Every file that is made from one source, as text. The same source always gives the same bytes."""
    book, text = read(name, root), (root / "notebooks" / "src" / f"{name}.py").read_text(encoding="utf-8")
    problems = lint(book)
    if problems:
        raise WorkbenchError(f"notebooks/src/{name}.py: " + "; ".join(problems))
    digest, folder = _hash(text), root / "notebooks"
    plain = _ipynb(book, solved, digest)
    return {
        folder / f"{name}.ipynb": plain,
        folder / "labs" / f"{name}.ipynb": _ipynb(book, stubbed, digest),
        folder / "marimo" / f"{name}_mo.py": _marimo(plain),
    }


def solved(source: str) -> str:
    """Drop the markers, keep the solution.

    >>> solved("def one():\\n    ### BEGIN SOLUTION\\n    return 1\\n    ### END SOLUTION")
    'def one():\\n    return 1'
    """
    return "\n".join(line for line in source.split("\n") if not line.strip().startswith((BEGIN, END)))


def stubbed(source: str) -> str:
    """Put a stub where the solution stood; words after the BEGIN marker are its hint.

    >>> print(stubbed("def one():\\n    ### BEGIN SOLUTION the smallest\\n    return 1\\n    ### END SOLUTION"))
    def one():
        raise NotImplementedError("your turn: the smallest")
    """
    lines, inside = [], False
    for line in source.split("\n"):
        word = line.strip()
        if word.startswith(BEGIN):
            inside, hint = True, word.removeprefix(BEGIN).strip() or "replace this line"
            lines.append(line[: len(line) - len(line.lstrip())] + f"raise NotImplementedError({json_text(hint)})")
        elif word.startswith(END):
            inside = False
        elif not inside:
            lines.append(line)
    return "\n".join(lines)


def json_text(hint: str) -> str:
    return json.dumps(f"your turn: {hint}", ensure_ascii=False)


def _ipynb(book, rewrite: Callable[[str], str], digest: str) -> str:
    cells = []
    for cell in book.cells:
        if "mutant" in tags(cell):
            continue
        source = rewrite(cell.source) if cell.cell_type == "code" else cell.source
        # the position is in the hash because two equal cells must not share an id
        row = {"cell_type": cell.cell_type, "id": _hash(f"{len(cells)}:{source}"), "metadata": {}}
        if tags(cell):
            row["metadata"] = {"tags": sorted(tags(cell))}
        if cell.cell_type == "code":
            row |= {"execution_count": None, "outputs": []}
        cells.append(row | {"source": source.splitlines(keepends=True)})
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "workbench": {"source": digest},
    }
    return _json({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


def _marimo(plain: str) -> str:
    # the same converter as `jupytext --to py:marimo`, called here because that starts three processes a notebook
    from marimo._convert.converters import MarimoConvert

    return MarimoConvert.from_ipynb(plain).to_py()


def _comparable(text: str) -> str:
    return re.sub(r'^__generated_with = ".*"$', "", text, flags=re.MULTILINE)  # marimo's version is no change of ours


# --- what the two forms must agree on ----------------------------------------------------------------------------


def lint(book) -> list[str]:
    """Why the notebook would mean something else in marimo, or could not be run or checked; empty if it is fine."""
    cells = [(n, cell, tags(cell)) for n, cell in enumerate(book.cells, 1) if cell.cell_type == "code"]
    problems, owner, looked, solution, mutant = [], {}, {}, None, False
    if not any("parameters" in marks for _, _, marks in cells):
        problems.append("no cell is tagged 'parameters'")
    for n, cell, marks in cells:
        if re.search(r"^\s*[%!]", cell.source, re.MULTILINE):
            problems.append(f"cell {n} has a magic or a shell line, which marimo does not know")
            continue
        try:
            tree = ast.parse(cell.source)
            binds, reads = bound_and_read(tree)
        except SyntaxError as error:
            problems.append(f"cell {n} does not parse: {error.msg}")
            continue
        if cell.source.count(BEGIN) != cell.source.count(END):
            problems.append(f"cell {n} has a BEGIN or END SOLUTION without its partner")
        if "solution" in marks:
            solution, mutant = n, False
        if "mutant" in marks:
            mutant = True
            if solution is None:
                problems.append(f"cell {n} is a mutant with no solution above it")
            continue
        if "check" in marks and not (solution and mutant):
            problems.append(f"cell {n} is a check whose solution has no mutant")
        if "parameters" in marks:
            problems += [f"cell {n}: parameter {name!r} is not a literal" for name in _declare(tree)[1]]
        looked[n] = reads
        for name in sorted(reads - binds):
            if name.startswith("_") and not name.startswith("__"):
                problems.append(f"cell {n} reads {name!r} and does not assign it: in marimo a _name is its cell's own")
        for name in sorted(binds):
            if name == "mo":
                problems.append(f"cell {n} assigns 'mo', which the marimo build needs for itself")
            elif not name.startswith("_") and owner.setdefault(name, n) != n:
                problems.append(f"cell {n} assigns {name!r} again (first in cell {owner[name]}); start it with _")
        for name in sorted(mutated(tree)):
            if not name.startswith("_") and owner.get(name, n) != n:
                problems.append(f"cell {n} changes {name!r}, which belongs to cell {owner[name]}")
    after = {n: {owner[name] for name in reads if name in owner} - {n} for n, reads in looked.items()}
    try:
        TopologicalSorter(after).prepare()
    except CycleError as error:
        ring = ", ".join(map(str, sorted(set(error.args[1]))))
        problems.append(f"cells {ring} wait for one another: marimo runs none of them")
    return problems


def bound_and_read(tree: ast.Module) -> tuple[set[str], set[str]]:
    """Names of the notebook's own that the code assigns, and those that it, or a function in it, looks up.

    >>> cell = "import a.b; c, (d, *_) = [e for f in g if (e := f)]; h = lambda i: i + j"
    >>> [sorted(found) for found in bound_and_read(ast.parse(cell))]
    [['_', 'a', 'c', 'd', 'e', 'h'], ['e', 'g', 'j']]
    """
    module = compile(tree, "cell", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    todo, binds, reads = [module], set(), set()
    while todo:
        code = todo.pop()
        done = {(line.opname, line.argval) for line in dis.get_instructions(code)}
        own = {name for op, name in done if op == "STORE_NAME"}  # a class body's are its own
        binds |= {name for op, name in done if op == "STORE_GLOBAL"} | (own if code is module else set())
        looks = {name for op, name in done if op in ("LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")}
        reads |= {name for op, name in done if op == "LOAD_GLOBAL"} | (looks if code is module else looks - own)
        todo += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
    return binds, reads


class _Changed(ast.NodeVisitor):
    """Names whose objects a cell changes at top level; the bodies of functions and classes are their own."""

    def __init__(self):
        self.found: set[str] = set()

    def _definition(self, node):
        for inner in node.decorator_list:
            self.visit(inner)

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _definition

    def visit_Lambda(self, node):
        pass

    def _comprehension(self, node):
        self.visit(node.generators[0].iter)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def _element(self, node):
        if not isinstance(node.ctx, ast.Load):
            self._change(node)
        self.generic_visit(node)

    visit_Attribute = visit_Subscript = _element

    def visit_Expr(self, node):
        call = node.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in MUTATORS:
            self._change(call.func)
        self.generic_visit(node)

    def _change(self, node):
        while isinstance(node, ast.Attribute | ast.Subscript):
            node = node.value
        if isinstance(node, ast.Name):
            self.found.add(node.id)


def mutated(tree: ast.AST) -> set[str]:
    """Top-level names whose objects the code changes in place.

    >>> sorted(mutated(ast.parse("a.append(1); b[0] = 2; c.d.e = 3; f(g)")))
    ['a', 'b', 'c']
    """
    visitor = _Changed()
    visitor.visit(tree)
    return visitor.found


@dataclass(frozen=True)
class Exercise:
    """One check with what it needs: `before` is the set-up and the earlier solutions, as one piece of code."""

    notebook: str
    cell: int
    before: str
    solution: str
    mutant: str
    check: str


def exercises(name: str, root: Path = ROOT) -> list[Exercise]:
    """Every check with each of its mutants: with `solution` it must pass, with `mutant` raise AssertionError."""
    found, before, solution, mutants = [], [], "", []
    for n, cell in enumerate(read(name, root).cells, 1):
        marks, source = tags(cell), solved(cell.source)
        if marks & {"setup", "parameters"}:
            before.append(source)
        elif "solution" in marks:
            before += [solution] if solution else []
            solution, mutants = source, []
        elif "mutant" in marks:
            mutants.append(source)
        elif "check" in marks:
            found += [Exercise(name, n, "\n".join(before), solution, mutant, source) for mutant in mutants]
    return found


# --- parameters --------------------------------------------------------------------------------------------------


def _declare(tree: ast.Module) -> tuple[dict[str, Any], list[str]]:
    literals, others = {}, []
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name):
                try:
                    literals[target.id] = ast.literal_eval(node.value)
                except ValueError:
                    others.append(target.id)
    return literals, others


def declared(cells: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Names and defaults of the notebook's `parameters` cell."""
    for cell in cells:
        if "parameters" in tags(cell):
            return _declare(ast.parse(_source(cell)))[0]
    return {}


def coerce(name: str, value: Any, default: Any) -> Any:
    """`value` as the type of the declared default; text from a command line is read as that type.

    >>> coerce("rate", "1e-5", 0.1), coerce("n", "3", 1), coerce("fast", "false", True), coerce("sizes", "[1, 2]", [])
    (1e-05, 3, False, [1, 2])
    >>> coerce("changes", "{'search_n': (1, 2)}", {})
    {'search_n': [1, 2]}
    """
    kind = type(default)
    if kind is str:
        return str(value)
    if isinstance(value, str):
        words = {"true": True, "false": False, "none": None}
        try:
            value = words[value.lower()] if value.lower() in words else ast.literal_eval(value)
        except (ValueError, SyntaxError):
            pass  # stays text, which the type test below refuses
    if kind is float and type(value) is int:
        value = float(value)
    if kind in (dict, list) and isinstance(value, kind):
        value = json.loads(json.dumps(value))  # papermill hands a tuple inside on as its text
    if default is not None and value is not None and type(value) is not kind:
        raise WorkbenchError(f"parameter {name}={value!r} should be of type {kind.__name__}, like {default!r}")
    return value


def settle(cells: Iterable[Mapping[str, Any]], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """All parameters of a notebook with the given ones put in; a name it does not declare is refused."""
    defaults = declared(cells)
    for name in given:
        if name not in defaults:
            raise WorkbenchError(f"{where}: {unknown('parameter', name, defaults)}")
    return defaults | {name: coerce(name, value, defaults[name]) for name, value in given.items()}


# --- running -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """One notebook about to be run: where everything lies and what it should cost."""

    name: str
    title: str
    source: Path
    output: Path
    parameters: Mapping[str, Any]
    hash: str
    expected: float  # seconds

    @property
    def status(self) -> Path:
        return self.output.with_suffix(".json")

    @property
    def log(self) -> Path:
        return self.output.with_suffix(".log")

    @property
    def done(self) -> bool:
        status = read_status(self.status)
        return bool(status.get("ok")) and status.get("hash") == self.hash and self.output.exists()


def read_status(path: Path) -> dict[str, Any]:
    """The status file of one executed notebook; empty when it is absent or cut short."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def plan(
    name: str,
    profile: str = "nano",
    runs: str | Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    root: Path = ROOT,
) -> Plan:
    """Settle everything about a run before anything is started, so that a mistake costs no time."""
    check_profile(profile)
    name = find(name, root)
    source = root / "notebooks" / f"{name}.ipynb"
    digest = _hash((root / "notebooks" / "src" / f"{name}.py").read_text(encoding="utf-8"))
    if not source.exists() or json.loads(source.read_text("utf-8"))["metadata"]["workbench"]["source"] != digest:
        build(root, only=name)
    text = source.read_text(encoding="utf-8")
    cells = json.loads(text)["cells"]
    runs = runs_folder(runs, root)
    given = {"profile": profile, "runs": str(runs)} | dict(parameters or {})
    settled = settle(cells, given, name)
    check_profile(settled["profile"])  # -p may have named another
    output = runs / settled["profile"] / "notebooks" / f"{name}.ipynb"
    # the place of `runs` is no part of what was computed, so a moved folder stays finished
    known = {key: value for key, value in settled.items() if key != "runs"}
    fingerprint = _hash("\0".join([text, code_hash(name, root), json.dumps(known, sort_keys=True)]))
    before = read_status(output.with_suffix(".json"))
    stated = re.search(rf"`{settled['profile']}`[^\d\n]*([\d.]+) min", "".join(map(_source, cells[:3])))
    expected = before.get("seconds") or before.get("expected") or 60 * float(stated[1] if stated else 1)
    return Plan(name, title(cells), source, output, settled, fingerprint, expected)


def run(
    name: str,
    profile: str = "nano",
    runs: str | Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    root: Path = ROOT,
    again: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Execute one notebook under papermill and return its status; a finished, unchanged one is left alone.

    The executed copy, its log and its status file lie in `runs/<profile>/notebooks/`. The status file says `ok`
    only after everything else is written.
    """
    job = plan(name, profile, runs, parameters, root)
    if job.done and not again:
        say(f"{job.name}: finished before")
        return read_status(job.status)
    job.output.parent.mkdir(parents=True, exist_ok=True)
    status = {"name": job.name, "title": job.title, "hash": job.hash, "parameters": dict(job.parameters)}
    status |= {"output": str(job.output)}
    status |= {"ok": None, "error": None, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "expected": job.expected}
    write(job.status, _json(status))
    start = time.monotonic()
    with job.log.open("w", encoding="utf-8") as log, Live(job.name, job.expected, log, say) as live:
        error = _execute(job, root, live)
    status |= {"ok": error is None, "error": error, "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    status |= {"seconds": round(time.monotonic() - start, 2), "peak_mb": round(live.peak / 2**20)}
    write(job.status, _json(status))
    if error:
        raise JobFailed(f"notebook {job.name} stopped in {error}; look at {job.output}")
    say(f"{job.name}: done in {clock(status['seconds'])}, {status['peak_mb'] / 1024:.1f} GB at peak")
    return status


def _execute(job: Plan, root: Path, live: Live) -> str | None:
    """Run the notebook in a kernel of this very interpreter; None, or what went wrong in one line."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.engines import papermill_engines
    from papermill.exceptions import PapermillExecutionError

    folder = tempfile.TemporaryDirectory(prefix="wb-")
    papermill_engines.register("workbench", _engine(folder.name))
    try:
        papermill.execute_notebook(
            str(job.source),
            str(job.output),
            parameters=dict(job.parameters),
            engine_name="workbench",
            kernel_name="python3",
            progress_bar=False,
            autosave_cell_every=30,
            cwd=str(root),
            stdout_file=live,
            stderr_file=live,
        )
    except PapermillExecutionError as error:
        return f"cell {error.exec_count}: {error.ename}: {' '.join(str(error.evalue).split())[:300]}"
    except (DeadKernelError, CellTimeoutError) as error:
        # the saved copy claims that every cell completed, so only our own status can be believed
        return f"a cell: {type(error).__name__}: the kernel ended (out of memory, or stopped from outside)"
    finally:
        folder.cleanup()
    return None


def _engine(folder: str):
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NBClientEngine

    class Kernel(AsyncKernelManager):
        """This interpreter, whatever the kernelspec called python3 on this machine points to."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.shutdown_wait_time = 2.0  # what a busy kernel gets after Ctrl-C
            if sys.platform != "win32":
                # sockets in a folder of our own: no port races, and a path short enough for the operating system
                self.transport, self.ip = "ipc", os.path.join(folder, "k")

        @property
        def kernel_spec(self):
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=argv, display_name="Python 3", language="python", env=FIGURES)

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, manager, kernel_name, **kwargs):
            live = kwargs["stdout_file"]
            client = PapermillNotebookClient(
                manager,
                kernel_name=kernel_name,
                kernel_manager_class=Kernel,
                coalesce_streams=True,  # a progress bar leaves its last state, not every one
                stdout_file=live,
                stderr_file=live,
            )
            return client.execute(stdout=live.log, stderr=live.log)  # what the kernel itself says, and C libraries

    return Engine


def run_marimo(
    name: str,
    profile: str = "nano",
    runs: str | Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    root: Path = ROOT,
) -> dict[str, Any]:
    """Run the marimo build in this process and return the names it defined."""
    import importlib.util

    job = plan(name, profile, runs, parameters, root)
    path = root / "notebooks" / "marimo" / f"{job.name}_mo.py"
    spec = importlib.util.spec_from_file_location(f"marimo_{job.name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    _, names_defined = module.app.run(defs=dict(job.parameters))  # all of them, or marimo ignores the cell
    return dict(names_defined)


class Live:
    """Shows that a notebook is alive, keeps what it prints in a log, and samples the memory of its processes."""

    def __init__(self, label: str, expected: float, log, say: Callable[[str], None]):
        self.label, self.expected, self.log, self.say = label, expected, log, say
        self.peak, self.last, self._stop = 0, "", threading.Event()

    def write(self, text: str) -> None:
        self.log.write(text)
        self.last = next((part.strip() for part in reversed(re.split(r"[\r\n]", text)) if part.strip()), self.last)

    def flush(self) -> None:
        self.log.flush()

    def __enter__(self) -> Live:
        self.start = time.monotonic()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()
        over("")

    def line(self) -> str:
        elapsed = time.monotonic() - self.start
        left = max(self.expected - elapsed, 0)
        return f"{self.label}: {clock(elapsed)} gone, " + (f"about {clock(left)} left" if left else "soon done")

    def _watch(self) -> None:
        spoken, looks = 0.0, 0
        while not self._stop.wait(0.5):
            elapsed, looks = time.monotonic() - self.start, looks + 1
            if looks < 10 or looks % 4 == 0:  # a look takes a tenth of a second of a core
                self.peak = max(self.peak, memory())
            if not over(f"{self.line()} · {self.last}") and elapsed - spoken >= 30:
                spoken = elapsed
                self.say(self.line())


# --- the whole study ---------------------------------------------------------------------------------------------


def reproduce(
    profile: str = "nano",
    runs: str | Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    root: Path = ROOT,
    again: bool = False,
    lanes: int = 1,
    say: Callable[[str], None] = print,
) -> tuple[int, int]:
    """Run the series, `lanes` notebooks at a time. Whatever is finished and unchanged is skipped, so a killed call goes
    on from there. Returns (how many notebooks ran, peak memory of them all in MB)."""
    check_profile(profile)
    plans, began = [plan(name, profile, runs, parameters, root) for name in names(root)], time.monotonic()
    if not plans:
        raise WorkbenchError(f"no notebooks under {root / 'notebooks' / 'src'}: call this from a clone of the project")
    todo = [each for each in plans if again or not each.done]
    jobs = [Job(p.name, run, (p.name, profile, runs, parameters, root, again), (), p.expected) for p in todo]
    if lanes > 1:
        jobs.sort(key=lambda job: -job.expected)  # or one lane waits for the other in the end
    if not todo:
        say(f"{len(plans)} notebooks at profile {profile}, finished before")
        return 0, 0
    say(f"{len(plans)} notebooks at profile {profile}, {len(todo)} to run, about {clock(wall(jobs, lanes))}")
    peak = abreast(jobs, lanes, runs_folder(runs, root) / profile / "logs", show=say) // 2**20
    say(f"{len(todo)} notebooks took {clock(time.monotonic() - began)} and {peak / 1024:.1f} GB at peak")
    return len(todo), peak


def trainings(
    profile: str = "nano", runs: str | Path | None = None, keep: int = 0, root: Path = ROOT
) -> tuple[dict[int, list[claims.Claim]], list[str]]:
    """(`claims.trainings`, a sentence for each that is not whole): a training of which a notebook is unfinished or of
    other code is no evidence beside the others; the seed `keep` stays whatever it is."""
    found, left_out = claims.trainings(runs_folder(runs, root), profile), []
    for seed in list(found) if len(found) > 1 or keep not in found else []:
        folder = runs_folder(runs, root) / f"seed-{seed}" if seed else runs
        every = [plan(name, profile, folder, {"seed": seed}, root) for name in names(root)]
        if old := [each.name for each in every if not each.done]:
            if seed != keep:
                del found[seed]
            left_out.append(
                f"seed {seed} is {'not whole' if seed == keep else 'left out'}, {len(old)} of its {len(every)} "
                f"notebooks are not finished or of other code: make reproduce SEED={seed} PROFILE={profile}"
            )
    return found, left_out


# --- what a notebook depends on ----------------------------------------------------------------------------------


def imported(path: Path, package: Path) -> set[str]:
    """Modules that a file imports, anywhere in it: `workbench.x.y` in full, others by their first name."""
    inside = path.is_relative_to(package)
    here = ["workbench", *path.relative_to(package).with_suffix("").parts] if inside else []
    modules = set()
    for node in _imports(path.read_text(encoding="utf-8")):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: -node.level] if node.level else []
            base += node.module.split(".") if node.module else []
            modules.add(".".join(base))
            if base and base[0] == "workbench":  # `from workbench import x` may mean the module x
                modules |= {".".join([*base, alias.name]) for alias in node.names if _file(package, base, alias.name)}
    return {name if name.split(".")[0] == "workbench" else name.split(".")[0] for name in modules}


@cache
def _imports(text: str) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]


def _file(package: Path, base: Iterable[str], name: str = "") -> Path | None:
    place = package.joinpath(*list(base)[1:], *([name] if name else []))
    options = (place.with_suffix(".py"), place / "__init__.py")
    return next((path for path in options if path.exists()), None)


def code_hash(name: str, root: Path = ROOT) -> str:
    """One hash over the package files that a notebook can reach, so that it runs again when one of them changes."""
    package = root / "workbench"
    reached: set[Path] = set()
    ahead = [root / "notebooks" / "src" / f"{name}.py"]
    while ahead:
        for module in imported(ahead.pop(), package):
            path = _file(package, module.split(".")) if module.split(".")[0] == "workbench" else None
            # members of a package are found by name while running, so touching it means all of them
            family = path.parent.glob("*.py") if path and path.name == "__init__.py" and path.parent != package else []
            fresh = ({path, *family} - {None}) - reached
            reached |= fresh
            ahead += fresh
    return _hash("\0".join(path.read_text(encoding="utf-8") for path in sorted(reached)))


# --- small things ------------------------------------------------------------------------------------------------


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
