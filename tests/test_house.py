"""Rules that hold the house together; each names the mistake that it keeps out."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from workbench import series

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "workbench"
FILES = sorted(PACKAGE.rglob("*.py"))

# A file imports only from lines above its own. Inside one package, members may import each other.
FLOORS = (
    ("F0", "types"),
    ("F1", "format grading runs watch lanes"),
    ("F1", "tasks"),
    ("F1", "smollm2"),
    ("F1", "models"),
    ("F1", "kv"),
    ("F1", "adapters"),
    ("F2", "policies select"),
    ("F2", "stepdata packing fit"),
    ("F3", "verifiers"),
    ("F3", "labels"),
    ("F3", "search"),
    ("F3", "trees"),
    ("F4", "sft"),
    ("F4", "flywheel rl steiner"),
    ("F5", "evaluate"),
    ("F5", "pipeline"),
    ("F5", "pretrained"),
    ("F6", "scaling"),
    ("F6", "judging"),
    ("F6", "claims"),
    ("F7", "plots"),
    ("F7", "widgets"),
    ("F8", "doctor"),
    ("F8", "series"),
    ("F8", "findings"),
    ("F8", "gallery"),
    ("F8", "prm_cli"),
    ("F8", "__main__"),
)
FLOOR = {unit: number for number, (_, units) in enumerate(FLOORS) for unit in units.split()}
# what runs when a figure is drawn again or a finished series is looked at must not wait for torch
LIGHT = (
    "types format grading runs watch lanes tasks select search trees scaling judging claims".split()
    + "pretrained plots doctor series findings gallery prm_cli __main__".split()
)


def unit(path: Path) -> str:
    """The file, or the package folder, that the table knows: `tasks` for tasks/countdown.py."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def ours(path: Path) -> set[str]:
    modules = [name.split(".") for name in series.imported(path, PACKAGE)]
    return {name[1] for name in modules if name[0] == "workbench" and len(name) > 1}


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_only_from_floors_below(path):
    if path.parent == PACKAGE and path.name == "__init__.py":
        assert not ours(path), "import workbench must stay instant"
        return
    assert unit(path) in FLOOR, f"{unit(path)} has no floor: put it into FLOORS"
    for below in ours(path) - {unit(path)}:
        assert FLOOR[below] < FLOOR[unit(path)], f"{relative(path)} imports {below}, which is not below it"


def test_the_floor_test_can_fail(tmp_path):
    (tmp_path / "workbench").mkdir()
    bad = tmp_path / "workbench" / "types.py"
    bad.write_text("def f():\n    from .pipeline import x\n    from . import rl\n    import workbench.search.beam\n")
    for name in ("rl.py", "pipeline.py"):
        (tmp_path / "workbench" / name).write_text("")
    found = series.imported(bad, tmp_path / "workbench")
    assert {"workbench.pipeline", "workbench.rl", "workbench.search.beam"} <= found


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_every_import_can_be_installed(path):
    """A module that works only on the machine where somebody once installed it by hand."""
    text = (ROOT / "requirements.lock").read_text() + (ROOT / "pyproject.toml").read_text()
    known = {
        re.sub(r"[-_.]+", "-", name).lower() for name in re.findall(r'^\s*"?([A-Za-z][\w.-]*)', text, re.MULTILINE)
    }
    owners = metadata.packages_distributions()
    for module in series.imported(path, PACKAGE) - {""}:
        if module.split(".")[0] in {"workbench", *sys.stdlib_module_names}:
            continue
        names = {re.sub(r"[-_.]+", "-", name).lower() for name in owners.get(module, [module])}
        extras = set(re.findall(r'"([a-z0-9-]+)[>=<"]', text))
        assert names & (known | extras), f"{relative(path)} imports {module}, which pyproject.toml does not ask for"


def broken_rules(text: str) -> list[str]:
    """A handler of everything must raise again, or say on its line why it need not."""
    broken, lines = [], text.split("\n")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler):
            kinds = [node.type] if not isinstance(node.type, ast.Tuple) else node.type.elts
            wide = any(kind is None or getattr(kind, "id", "") in ("Exception", "BaseException") for kind in kinds)
            if wide and not isinstance(node.body[-1], ast.Raise) and "  # " not in lines[node.lineno - 1]:
                broken.append(f"line {node.lineno}: catches everything, so an error becomes a result")
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            if modules & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}:
                broken.append(f"line {node.lineno}: a pickled file can run any code")
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in ("eval", "exec", "torch.load", "torch.save"):
                broken.append(f"line {node.lineno}: {name}")
            if any(keyword.arg == "trust_remote_code" for keyword in node.keywords):
                broken.append(f"line {node.lineno}: trust_remote_code")
    return broken


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_house_rules(path):
    assert broken_rules(path.read_text()) == []


@pytest.mark.parametrize(
    "code",
    ["try:\n    f()\nexcept Exception:\n    pass", "try:\n    f()\nexcept:\n    pass", "import pickle", "eval('1')"]
    + ["torch.load('x')", "f(trust_remote_code=True)", "try:\n    f()\nexcept (OSError, BaseException):\n    pass"],
)
def test_house_rules_can_fail(code):
    assert len(broken_rules(code)) == 1


def test_import_is_instant():
    code = "import time; t = time.process_time(); import workbench; print(time.process_time() - t)"
    seconds = min(float(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT)) for _ in range(3))
    assert seconds < 0.1


def test_light_modules_do_not_load_torch():
    there = [name for name in LIGHT if (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir()]
    code = f"import sys; [__import__('workbench.' + n) for n in {there!r}]; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "False"


# --- the notebooks -----------------------------------------------------------------------------------------------

NAMES = series.names(ROOT)


def test_built_notebooks_are_current():
    assert series.build(ROOT, check=True) == [], "run: python -m workbench build"


def test_built_notebooks_have_sources():
    folder = ROOT / "notebooks"
    made = [*folder.glob("[0-9][0-9]_*.ipynb"), *folder.glob("labs/*.ipynb"), *folder.glob("marimo/*_mo.py")]
    assert {re.sub(r"_mo$", "", path.stem) for path in made} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_notebook_style(name):
    """Cells longer than a screen, which nobody reads."""
    cells = [cell for cell in series.read(name, ROOT).cells if "mutant" not in series.tags(cell)]
    lengths = [len(cell.source.strip().split("\n")) for cell in cells if cell.cell_type == "code"]
    assert statistics.median(lengths) <= 6
    assert statistics.quantiles(lengths, n=10, method="inclusive")[-1] <= 20
    assert max(lengths) <= 40


@pytest.mark.parametrize("name", NAMES)
def test_notebook_has_its_parts(name):
    book = series.read(name, ROOT)
    assert series.title(book.cells).endswith("?"), "the title of a notebook is a question"
    defaults = series.declared(book.cells)
    assert {"profile": "nano", "runs": "runs", "seed": 0}.items() <= defaults.items()


def test_notebooks_import_the_package_instead_of_repeating_it():
    """Two definitions of one function, of which one is mended later."""
    defined = {}
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined[node.name] = re.sub(r"\s+", "", ast.unparse(node))
    for name in NAMES:
        for node in ast.parse((ROOT / "notebooks" / "src" / f"{name}.py").read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert defined.get(node.name) != re.sub(r"\s+", "", ast.unparse(node)), f"{name} repeats {node.name}"
