"""Run folders: what is half-written never looks finished, and nothing that was finished is lost."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.runs import Run, hash_file, hash_tree
from workbench.types import Record, WorkbenchError

HOME = Path(__file__).parents[1]


def finished(path, **params):
    run = Run.open(path, params)
    run.append("records", [{"a": 1}, {"a": 2}])
    with run.folder("model") as folder:
        (folder / "model.safetensors").write_bytes(b"weights" * 100)
    run.finish(loss=0.5)
    return run


def elsewhere(code, *args, **more):
    """Run code in another process, with the package on its path."""
    env = {**os.environ, "PYTHONPATH": str(HOME)}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], env=env, **more)


# --- opening -----------------------------------------------------------------------------------------------------


def test_run_json_says_what_was_asked_and_what_surrounded_it(tmp_path):
    """Pins: a result nobody can trace back to its parameters, inputs, versions and code."""
    (tmp_path / "data").write_text("rows")
    run = Run.open(tmp_path / "nano/sft", {"steps": 3, "seed": 0}, {"data": tmp_path / "data"})
    about = json.loads((run.path / "run.json").read_text())
    assert about["params"] == {"steps": 3, "seed": 0}
    assert about["inputs"] == {"data": hash_file(tmp_path / "data")}
    assert about["packages"]["python"] and len(about["code"]["sha256"]) == 64
    assert not run.done and run.summary is None


def test_present_is_done_is_skipped_and_absent_is_resumed(tmp_path):
    """Pins: a second call that trains again, and a resumed run that starts from nothing."""
    Run.open(tmp_path / "sft", {"steps": 3}).append("history", [{"step": 1}])
    again = Run.open(tmp_path / "sft", {"steps": 3})
    assert not again.done and again.read("history") == [{"step": 1}]
    again.finish(loss=1.0)
    last = Run.open(tmp_path / "sft", {"steps": 3})
    assert last.done and last.summary == {"loss": 1.0} and last.read("history") == [{"step": 1}]


def test_parameters_are_compared_as_they_are_kept(tmp_path):
    """Pins: tuples become lists in JSON, so the same parameters looked changed on every second call."""

    @dataclass(frozen=True)
    class Config:
        levels: tuple = (1, 2)
        where: Path = Path("a/b")

    params = {"config": Config(), "betas": (0.9, 0.95), "by": {1: "one"}}
    finished(tmp_path / "sft", **params)
    assert Run.open(tmp_path / "sft", params).done


def test_a_changed_run_is_moved_aside_named_and_can_come_back(tmp_path, capsys):
    """Pins: results of other parameters taken for these, or deleted to make room."""
    first = finished(tmp_path / "sft", steps=60, opt={"lr": 0.1})
    key = first.about["key"][:8]
    second = Run.open(tmp_path / "sft", {"steps": 100, "opt": {"lr": 0.1}})
    said = capsys.readouterr().out
    assert "steps 60 → 100" in said and "lr" not in said and f"sft~{key}" in said and said.count("\n") == 1
    assert not second.done and second.read("records") == []
    back = Run.open(tmp_path / "sft", {"steps": 60, "opt": {"lr": 0.1}})
    assert back.done and back.read("records") == [{"a": 1}, {"a": 2}]
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["sft", f"sft~{second.about['key'][:8]}"]


def test_a_changed_input_makes_a_changed_run(tmp_path, capsys):
    """Pins: a verifier trained on last week's policy that is taken for this week's."""
    data = tmp_path / "data"
    data.write_text("old")
    Run.open(tmp_path / "prm", {}, {"policy": data}).finish()
    data.write_text("new")
    assert not Run.open(tmp_path / "prm", {}, {"policy": data}).done
    assert "input policy" in capsys.readouterr().out
    data.rename(tmp_path / "moved")
    (tmp_path / "moved").write_text("old")
    assert Run.open(tmp_path / "prm", {}, {"policy": tmp_path / "moved"}).done  # where it lies does not count


def test_inputs_must_be_there_and_finished(tmp_path):
    with pytest.raises(WorkbenchError, match="'policy' is not there.*run the stage"):
        Run.open(tmp_path / "prm", {}, {"policy": tmp_path / "sft"})
    Run.open(tmp_path / "sft", {})
    with pytest.raises(WorkbenchError, match="unfinished"):
        Run.open(tmp_path / "prm", {}, {"policy": tmp_path / "sft"})
    assert not (tmp_path / "prm").exists()


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "thesis.txt").write_text("precious")
    with pytest.raises(WorkbenchError, match="no run.json"):
        Run.open(tmp_path / "sft", {})
    (tmp_path / "file").write_text("x")
    with pytest.raises(WorkbenchError, match="is a file"):
        Run.open(tmp_path / "file", {})
    assert (tmp_path / "sft" / "thesis.txt").read_text() == "precious"


def test_existing_reads_without_knowing_the_parameters(tmp_path):
    with pytest.raises(WorkbenchError, match="no run at"):
        Run.existing(tmp_path / "sft")
    finished(tmp_path / "sft", steps=3)
    run = Run.existing(tmp_path / "sft")
    assert run.done and run.params == {"steps": 3} and run.summary == {"loss": 0.5}


def test_parameters_that_json_cannot_hold_are_refused_before_anything_is_made(tmp_path):
    for bad in ({"f": len}, {"lr": float("nan")}, {"s": {1, 2}}):
        with pytest.raises(WorkbenchError, match="params"):
            Run.open(tmp_path / "sft", bad)
    assert not (tmp_path / "sft").exists()


# --- corruption --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, spoil",
    [
        ("records.jsonl", lambda b: b[:-1]),
        ("records.jsonl", lambda b: b.replace(b"1", b"7")),  # same size
        ("model/model.safetensors", lambda b: b[: len(b) // 2]),
        ("model/model.safetensors", lambda b: b"W" + b[1:]),
        ("run.json", lambda b: b[: len(b) // 2]),
        ("DONE", lambda b: b[: len(b) // 2]),
        ("DONE", lambda b: b""),
        ("DONE", lambda b: b.replace(b"0.5", b"0.1")),  # a better loss
    ],
)
def test_a_spoilt_file_is_named_with_the_remedy(tmp_path, name, spoil):
    """Pins: half a checkpoint loaded as a whole one, and edited numbers that nobody notices."""
    run = finished(tmp_path / "sft")
    file = run.path / name
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(WorkbenchError) as error:
        Run.open(tmp_path / "sft", {})
    assert name in str(error.value).replace(os.sep, "/") and f"delete {run.path} and run again" in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    run = finished(tmp_path / "sft")
    (run.path / "model" / "model.safetensors").unlink()
    with pytest.raises(WorkbenchError, match="model.safetensors is missing"):
        Run.open(tmp_path / "sft", {})


def test_verification_is_fast(tmp_path):
    """Pins: a second pass over thirteen finished notebooks that takes minutes. Goal: 50 MB in 0.3 s."""
    run = Run.open(tmp_path / "sft", {})
    with run.folder("model") as folder:
        (folder / "weights").write_bytes(os.urandom(50 << 20))
    run.finish()
    seconds = []
    for _ in range(3):
        start = time.process_time()
        assert Run.open(tmp_path / "sft", {}).done
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.3


def test_a_file_laid_into_a_finished_run_changes_nothing_that_reads_it(tmp_path):
    source = Run.open(tmp_path / "chains", {"n": 1})
    source.append("traces", [{"a": 1}])
    source.finish()
    before, reader = hash_tree(source.path), Run.open(tmp_path / "judge", {}, {"chains": source.path})
    reader.finish()
    (source.path / "figure.html").write_text("looked at")
    (source.path / "model").mkdir()
    (source.path / "model" / "notes.txt").write_text("mine")
    assert hash_tree(source.path) == before
    assert Run.open(tmp_path / "judge", {}, {"chains": source.path}).done
    (source.path / "traces.jsonl").write_text("{}\n")
    assert hash_tree(source.path) != before


def test_hash_tree_is_of_names_and_bytes_alone(tmp_path):
    """Pins: a stage made twice that counts as changed because its clock or its versions did."""
    one, two = finished(tmp_path / "a", seed=1), finished(tmp_path / "b", seed=2)
    assert hash_tree(one.path) == hash_tree(two.path)
    (two.path / "model" / "model.safetensors").rename(two.path / "model" / "other.safetensors")
    assert hash_tree(one.path) != hash_tree(two.path)


# --- rows --------------------------------------------------------------------------------------------------------


def test_a_half_written_last_line_is_dropped_and_the_next_row_starts_a_line(tmp_path):
    """Pins: after a crash the next row is glued to half a row, and both are lost."""
    run = Run.open(tmp_path / "sft", {})
    run.append("records", [{"a": 1}])
    with open(run.path / "records.jsonl", "ab") as file:
        file.write(b'{"a": 2, "te')
    assert run.read("records") == [{"a": 1}]
    assert (run.path / "records.jsonl").read_bytes() == b'{"a": 1}\n'
    with open(run.path / "records.jsonl", "ab") as file:
        file.write(b'{"a": 2, "te')
    again = Run.open(tmp_path / "sft", {})
    again.append("records", [{"a": 3}])
    assert again.read("records") == [{"a": 1}, {"a": 3}]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=8) | st.none(), max_size=2), max_size=5),
    cut=st.integers(0, 400),
)
def test_whatever_a_crash_leaves_is_the_start_of_what_was_written(tmp_path, rows, cut):
    """Pins: a resumed run that trusts a row of which only a part is on the disk."""
    run = Run.open(tmp_path / "sft", {})
    file = run.path / "records.jsonl"
    file.unlink(missing_ok=True)
    run.append("records", rows)
    assert run.read("records") == rows
    file.write_bytes(file.read_bytes()[:cut])
    kept = run.read("records")
    assert kept == rows[: len(kept)]


def test_a_row_ends_at_its_line_end_alone(tmp_path):
    """Pins: str.splitlines, which cuts a row of another writer at a separator inside its text."""
    run = Run.open(tmp_path / "sft", {})
    (run.path / "records.jsonl").write_bytes('{"a": "1\u20282\x85"}\n'.encode())
    assert run.read("records") == [{"a": "1\u20282\x85"}]


@pytest.mark.parametrize("line", ['{"a": ', "[1]", "3", "\x00\x00\x00", ""])
def test_a_corrupt_line_in_the_middle_is_refused_by_number(tmp_path, line):
    """Pins: rows skipped in silence, so that an accuracy is one of fewer problems."""
    run = Run.open(tmp_path / "sft", {})
    (run.path / "records.jsonl").write_text('{"a": 1}\n' + line + '\n{"a": 3}\n')
    with pytest.raises(WorkbenchError, match=r"records.jsonl, line 2,.*delete .* and run again"):
        run.read("records")


def test_an_append_is_all_or_nothing(tmp_path):
    run = Run.open(tmp_path / "sft", {})
    run.append("records", [{"a": 1}])
    for bad in ({"a": float("nan")}, {"a": len}, "not json", "[1]", 3):
        with pytest.raises(WorkbenchError, match="records.jsonl"):
            run.append("records", [{"a": 2}, bad])
    run.append("records", ['{"a":\n 2}', Record("r", "p/1", 0, "5", True).to_json()])  # one line each, whatever came in
    rows = run.read("records")
    assert rows[:2] == [{"a": 1}, {"a": 2}] and rows[2]["problem"] == "p/1" and len(rows) == 3
    assert run.read("nothing") == []


def test_numbers_of_numpy_and_torch_are_numbers(tmp_path):
    numpy = pytest.importorskip("numpy")
    run = Run.open(tmp_path / "sft", {"seed": numpy.int64(3)})
    run.append("history", [{"loss": numpy.float32(0.5), "step": numpy.int64(2), "scores": numpy.zeros(2)}])
    assert run.read("history") == [{"loss": 0.5, "step": 2, "scores": [0.0, 0.0]}] and run.params == {"seed": 3}


# --- artifacts ---------------------------------------------------------------------------------------------------


def test_an_artifact_folder_is_complete_or_absent(tmp_path):
    """Pins: half a checkpoint after an error, and a good one lost to a bad one."""
    run = Run.open(tmp_path / "sft", {})
    with pytest.raises(RuntimeError), run.folder("model") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert sorted(os.listdir(run.path)) == ["run.json"]
    for text in "one", "two":
        with run.folder("model") as folder:
            (folder / text).write_text(text)
    assert os.listdir(run.path / "model") == ["two"]
    with pytest.raises(KeyboardInterrupt), run.folder("model"):
        raise KeyboardInterrupt
    assert os.listdir(run.path / "model") == ["two"]


def test_a_crash_between_the_two_renames_is_mended(tmp_path):
    run = Run.open(tmp_path / "sft", {})
    with run.folder("model") as folder:
        (folder / "weights").write_text("good")
    (run.path / "model").rename(run.path / "model.old")
    (run.path / "model.tmp").mkdir()
    run = Run.open(tmp_path / "sft", {})
    assert (run.path / "model" / "weights").read_text() == "good"
    assert sorted(os.listdir(run.path)) == ["model", "run.json"]


def test_write_json_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    run = Run.open(tmp_path / "sft", {})
    run.write_json("config.json", {"a": 1})
    with pytest.raises(WorkbenchError, match="config.json"):
        run.write_json("config.json", {"a": float("inf")})
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        run.write_json("config.json", {"a": 2})
    assert json.loads((run.path / "config.json").read_text()) == {"a": 1}
    assert sorted(os.listdir(run.path)) == ["config.json", "run.json"]


@pytest.mark.parametrize("name", ["../x", "a/b", "", "run.json", "DONE", "model.tmp", ".hidden"])
def test_names_stay_inside_the_run(tmp_path, name):
    run = Run.open(tmp_path / "sft", {})
    with pytest.raises(WorkbenchError, match="cannot be a name"):
        run.write_json(name, {})


def test_a_finished_run_cannot_be_written(tmp_path):
    """Pins: rows added after the hashes were taken."""
    run = finished(tmp_path / "sft")
    for write in (
        lambda: run.append("records", [{"a": 3}]),
        lambda: run.write_json("x.json", {}),
        lambda: run.folder("model").__enter__(),
        lambda: run.finish(),
    ):
        with pytest.raises(WorkbenchError, match="finished"):
            write()


def test_a_run_does_not_finish_while_an_artifact_is_open(tmp_path):
    run = Run.open(tmp_path / "sft", {})
    with pytest.raises(WorkbenchError, match="still being written"), run.folder("model"):
        run.finish()
    assert not (run.path / "DONE").exists()


def test_a_killed_run_does_not_look_finished(tmp_path):
    """Pins: kill -9 in the middle of a checkpoint, then a second call that trusts what it finds."""
    code = """if True:
        import os, sys
        from workbench.runs import Run
        run = Run.open(sys.argv[1], {"steps": 2})
        run.append("history", [{"step": 1}])
        with run.folder("model") as folder:
            (folder / "half").write_text("x")
            os.kill(os.getpid(), 9)
    """
    assert elsewhere(code, tmp_path / "sft").wait() == -signal.SIGKILL
    run = Run.open(tmp_path / "sft", {"steps": 2})
    assert not run.done and run.read("history") == [{"step": 1}] and not (run.path / "model").exists()
    run.finish()
    assert Run.open(tmp_path / "sft", {"steps": 2}).done


# --- the disk and the neighbours ---------------------------------------------------------------------------------


def test_a_full_disk_is_told_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    """Pins: a traceback from deep inside, and a row cut in two that the next start trips over."""
    run = Run.open(tmp_path / "sft", {})
    run.append("records", [{"a": 1}])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        for write in (
            lambda: run.append("records", [{"a": 2}]),
            lambda: run.write_json("x.json", {}),
            lambda: run.finish(),
        ):
            with pytest.raises(WorkbenchError, match=rf"disk is full at {run.path}: free \d+ MB"):
                write()
    with pytest.raises(WorkbenchError, match="disk is full"), run.folder("model") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError("I/O error: No space left on device (os error 28)")  # as safetensors says it
    assert not run.done and run.read("records") == [{"a": 1}]
    assert sorted(os.listdir(run.path)) == ["records.jsonl", "run.json"]
    run.append("records", [{"a": 2}])
    run.finish()
    assert Run.open(tmp_path / "sft", {}).read("records") == [{"a": 1}, {"a": 2}]


@pytest.mark.skipif(os.name == "nt", reason="no lock on Windows")
def test_two_processes_do_not_write_one_run(tmp_path):
    """Pins: two notebooks that build the same stage at once and mix their rows."""
    code = """if True:
        import sys
        from workbench.runs import Run
        run = Run.open(sys.argv[1], {})
        print("open", flush=True)
        sys.stdin.readline()
        run.finish()
        print("done", flush=True)
        sys.stdin.readline()
    """
    other = elsewhere(code, tmp_path / "sft", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "open\n"
    with pytest.raises(WorkbenchError, match=f"being written by process {other.pid}"):
        Run.open(tmp_path / "sft", {})
    with pytest.raises(WorkbenchError, match="being written"):
        Run.open(tmp_path / "sft", {"other": 1})  # nor is it moved away under the writer
    read = Run.existing(tmp_path / "sft")
    for write in (lambda: read.append("history", [{}]), lambda: read.write_json("x.json", {})):
        with pytest.raises(
            WorkbenchError, match="opened to be read.*Run.open"
        ):  # Bug: it wrote beside the lock's owner
            write()
    other.stdin.write("\n")
    other.stdin.flush()
    assert other.stdout.readline() == "done\n"
    assert Run.open(tmp_path / "sft", {}).done
    other.communicate("\n", timeout=10)
    assert Run.open(tmp_path / "sft", {}).done  # a finished run is read by anyone
