from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from workbench import __main__ as cli
from workbench import claims, gallery, pipeline, series
from workbench.lanes import JobFailed
from workbench.scaling import Estimate
from workbench.types import WorkbenchError

ROOT = Path(__file__).resolve().parents[1]


def test_help_is_quick():
    code = "import time\nfrom workbench.__main__ import main\nmain([])\nprint(time.process_time())"
    runs = [subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) for _ in range(3)]
    assert "reproduce" in runs[0]
    assert min(float(run.splitlines()[-1]) for run in runs) < 0.3


@pytest.mark.parametrize(
    "words, said",
    [
        (["reproduc"], "unknown command 'reproduc': did you mean 'reproduce'?"),
        (["run"], "required: notebook; see `python -m workbench run --help`"),
        (["run", "no_such_notebook"], "unknown notebook 'no_such_notebook'"),
        (["reproduce", "--profile", "nanu"], "unknown profile 'nanu': did you mean 'nano'?"),
        (["claims", "--profile", "nanu"], "unknown profile 'nanu'"),
        (["gallery", "--profile", "nanu"], "unknown profile 'nanu'"),
        (["solve", "1+1", "--profile", "nanu"], "unknown profile 'nanu'"),
        (["doctor", "--profile", "nanu"], "unknown profile 'nanu'"),
        (["run", "x", "-p", "seed"], "write it as -p name=value"),
        (["bench", "no_such_benchmark"], "unknown benchmark 'no_such_benchmark'"),
        (["claims", "--jsno"], "unrecognized arguments: --jsno"),
    ],
)
def test_a_mistake_is_one_sentence(words, said, capsys):
    assert cli.main(words) == 2
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.count("\n") == 1 and not shown.out


@pytest.mark.parametrize(
    "number, said", [(errno.ENOSPC, "the disk is full: /x; free some"), (errno.EACCES, "denied: /x")]
)
def test_a_full_disk_is_one_sentence(number, said, monkeypatch, capsys):
    def fail(args):
        raise OSError(number, "denied", "/x")

    monkeypatch.setattr(cli, "claims", fail)
    fail.__name__ = "claims"
    assert cli.main(["claims"]) == 1
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.count("\n") == 1


def test_claims_without_any(tmp_path, capsys):
    assert cli.main(["claims", "--runs", str(tmp_path)]) == 0
    assert "make reproduce" in capsys.readouterr().out
    assert cli.main(["claims", "--runs", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize("command", ["claims", "gallery"])
def test_a_runs_folder_that_is_not_there_is_said(tmp_path, command, capsys):
    """Bug: a slip of the pen reads "no claims yet", and leaves an empty gallery behind."""
    (tmp_path / "file").write_text("")
    for name, said in (("nowhere", "is not there"), ("file", "is a file, not the folder")):
        assert cli.main([command, "--runs", str(tmp_path / name)]) == 2
        shown = capsys.readouterr()
        assert f"{tmp_path / name} {said}" in shown.err and not shown.out
    assert not (tmp_path / "nowhere").exists()


def test_bench_prints_and_writes(tmp_path, monkeypatch, capsys):
    rows = [
        {"name": "speed", "value": 1234.5, "unit": "tokens/s", "goal": ">= 1000", "holds": True},
        {"name": "gain", "value": 0.04, "unit": "", "goal": ">= .1", "holds": False},
        {"name": "size", "value": None, "unit": "MB", "goal": None, "holds": None},
    ]
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "one.py").write_text(f"def main():\n    return {rows!r}\n")
    (tmp_path / "benchmarks" / "_helper.py").write_text("raise SystemExit('not a benchmark')\n")
    monkeypatch.setattr(series, "ROOT", tmp_path)
    assert cli.main(["bench", "--runs", str(tmp_path / "runs")]) == 1, "a goal that is missed fails the command"
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].split() == ["speed", "1,234", "tokens/s", ">=", "1000", "yes"]
    assert shown[2].split() == ["gain", "0.04", ">=", ".1", "NO"]
    assert shown[3].split() == ["size", "-", "MB", "-", "-"]
    assert json.loads((tmp_path / "runs" / "bench" / "one.json").read_text()) == rows


def test_build_check_names_what_is_stale(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(series, "build", lambda check: ["notebooks/00_x.ipynb"])
    assert cli.main(["build", "--check"]) == 1
    shown = capsys.readouterr()
    assert "stale: notebooks/00_x.ipynb" in shown.out and "workbench build" in shown.err


def test_exit_codes_tell_work_from_request():
    assert JobFailed("x").code == 1
    assert not hasattr(WorkbenchError("x"), "code")


def test_another_seed_is_another_training_in_a_folder_of_its_own(tmp_path, monkeypatch, capsys):
    """Bugs: it moves the first training's stages aside; notebooks read seed 0; its claims are told as the first's."""
    asked = []

    def notebooks(profile, runs, given, again, lanes):
        asked.append((runs, given))
        (runs / profile).mkdir(parents=True, exist_ok=True)
        claim = claims.Claim("a.b", "me", "it works", "> 0", Estimate(0.25 + given["seed"], 0.1, 4.0, 9))
        claims.record(runs, profile, "05", [claim])
        return 1, 9

    monkeypatch.setattr(pipeline, "build", lambda *given: asked.append(given) or (0, 7))
    monkeypatch.setattr(series, "reproduce", notebooks)
    drawn = []
    monkeypatch.setattr(gallery, "write", lambda profile, runs, anew: drawn.append(runs))
    for seed in (0, 3):
        assert cli.main(["reproduce", "--runs", str(tmp_path), "--seed", str(seed)]) == 0
    assert [(built[1], built[2]) for built in asked[:4:2]] == [(tmp_path, 0), (tmp_path / "seed-3", 3)]
    assert asked[1:4:2] == [(tmp_path, {"seed": 0}), (tmp_path / "seed-3", {"seed": 3})]
    assert "seed 0 is left out, 9 of its 9 notebooks are not finished" in (said := capsys.readouterr().out)
    assert "3.25" in said
    monkeypatch.setattr(series, "names", lambda root: [])  # all of them are
    assert cli.main(["reproduce", "--runs", str(tmp_path), "--seed", "3"]) == 0
    assert drawn == [tmp_path, tmp_path / "seed-3", tmp_path, tmp_path / "seed-3"], "the first one's claims, too"
    capsys.readouterr()
    assert cli.main(["claims", "--runs", str(tmp_path)]) == 0
    [row] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("a.b")]
    assert row.split()[:3] == ["a.b", "holds", "0.25"] and "3: 3.25 holds" in row
    told = (tmp_path / "seed-3" / "nano" / "reproduce.jsonl").read_text().splitlines()
    assert [json.loads(line)["peak_mb"] for line in told] == [9, 9]
    assert cli.main(["reproduce", "--seed", "-1"]) == 2 and "--seed -1" in capsys.readouterr().err
