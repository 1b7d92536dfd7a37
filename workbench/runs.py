"""A run on disk: what was asked (`run.json`), what came of it, and `DONE` last. Standard library only.

    runs/nano/sft/
        run.json        written first: parameters, inputs by hash, package versions, code revision
        history.jsonl   append-only rows, each append flushed to the disk
        model/          an artifact folder, complete or absent
        DONE            written last: sha256 and size of every file, and a summary

Present is done is skipped; absent is resumed; changed is moved aside, never lost. JSON beside weights, never pickle.

Left out: stages that depend on stages (an input's hash says enough), remote stores, and a lock on Windows.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from .types import WorkbenchError

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "peft", "bitsandbytes", "numpy", "math-verify")
_OURS = ("run.json", "DONE")
_locks: dict[str, Any] = {}  # one lock a run folder and process: a cell may be run twice, another kernel may not


def hash_file(path: str | Path) -> str:
    """sha256 of a file's bytes, 64 hex digits.

    >>> hash_file(__file__) == hash_file(Path(__file__))
    True
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_tree(path: str | Path) -> str:
    """sha256 of what a folder holds: relative names and bytes of its files, in sorted order; a file gives its own.

    `DONE`, `run.json` and `*.tmp` are left out, since they tell when and how the rest was made: the same product made
    twice has one hash. File times and modes are left out as well, and so is what was laid into a finished run since.
    """
    path = Path(path)
    if path.is_file():
        return hash_file(path)
    names = [name for name in _files(path) if name not in _OURS]
    if (path / "run.json").exists() and (path / "DONE").exists():
        written = _done(path)["files"]
        names = [name for name in names if name in written]
    return _digest({name: hash_file(path / name) for name in names})


class Run:
    """One stage's folder. Get one by `Run.open`; read `path`, `params`, `done` and, when done, `summary`.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "nano" / "sft"
    >>> run = Run.open(folder, {"steps": 60, "seed": 0})
    >>> run.append("history", [{"step": 1, "loss": 2.5}])
    >>> run.finish(loss=2.5)
    >>> again = Run.open(folder, {"steps": 60, "seed": 0})
    >>> again.done, again.summary, again.read("history")
    (True, {'loss': 2.5}, [{'step': 1, 'loss': 2.5}])
    """

    def __init__(self, path: Path, about: dict):
        self.path, self.about, self.params = path, about, about["params"]
        self.done, self.summary = False, None

    @classmethod
    def open(cls, path: str | Path, params: Mapping[str, Any], inputs: Mapping[str, str | Path] | None = None) -> Run:
        """Create the run, or go on with the one that is there.

        `params`: whatever JSON can hold, also dataclasses, tuples and paths; seeds belong here. `inputs`: name → file
        or folder that the stage reads; only their hashes count, so a moved input changes nothing.
        The same parameters and input hashes: resumed (`done` when finished). Anything else: the old folder is moved to
        `<stage>~<its hash>`, one printed line says what changed, and a run begins afresh, or is moved back when these
        parameters have been asked for before.
        WorkbenchError: a missing or unfinished input; a file that does not match its hash; a folder that is no run; a
        run that another process is writing.
        """
        path = Path(path)
        params, hashes, key = _name(params, inputs)
        about = _about(path)
        if about is not None and about["key"] == key and (path / "DONE").exists():
            return cls(path, about)._settle()
        with _guard(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _lock(path)
        about = _about(path)
        if about is not None and about["key"] != key:
            aside = _aside(path, about["key"])
            path.rename(aside)
            print(f"{path}: {_changes(about, params, hashes)}; the earlier run is kept in {aside.name}")
            about = None
        if about is None:
            back = path.with_name(f"{path.name}~{key[:8]}")
            about = _about(back)
            if about is not None and about["key"] == key:
                _remove(path)
                back.rename(path)
                print(f"{path}: taken back from {back.name}")
            else:
                about = {"key": key, "params": params, "inputs": hashes, **_surroundings()}
                with _guard(path):
                    path.mkdir(exist_ok=True)
                write(path / "run.json", json.dumps(about, indent=1) + "\n")
        return cls(path, about)._settle()

    @classmethod
    def finished(
        cls, path: str | Path, params: Mapping[str, Any], inputs: Mapping[str, str | Path] | None = None
    ) -> Run | None:
        """The run that `open` would find done, or None; nothing is changed. Errors: a file that does not match its
        hash."""
        about = _about(Path(path))
        same = about is not None and about["key"] == _name(params, inputs)[2] and (Path(path) / "DONE").exists()
        return cls(Path(path), about)._settle() if same else None

    @classmethod
    def existing(cls, path: str | Path) -> Run:
        """The run that lies at `path`, whatever its parameters, for reading; its hashes are verified when it is done.

        WorkbenchError when there is none.
        """
        about = _about(Path(path))
        if about is None:
            raise WorkbenchError(f"there is no run at {path}: run the stage that makes it first")
        run = cls(Path(path), about)
        return run._settle() if (run.path / "DONE").exists() else run

    def append(self, name: str, rows: Iterable[Mapping | str]) -> None:
        """Add rows to `<name>.jsonl` and flush them to the disk: all of them, or none when a row or the disk refuses.

        A row is a mapping, or a line of JSON such as `Record.to_json()`. NaN is refused: unknown is None.
        """
        path = self._writable(_jsonl(name))
        lines = "".join(self._line(path.name, row) for row in rows).encode()
        _repair(path)
        with _guard(self.path, len(lines)), open(path, "ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                view = memoryview(lines)
                while view:
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
            except BaseException:  # also on Ctrl-C: half an append is none
                file.truncate(size)
                raise

    def read(self, name: str) -> list[dict]:
        """All rows of `<name>.jsonl`, [] when there is none.

        A last line without its line end was cut by a crash: it is dropped, from the file as well. Any other line that
        is no JSON object raises WorkbenchError with the file and line number.
        """
        path = self.path / _jsonl(name)
        if not path.exists():
            return []
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw) and not self.done and str(self.path.resolve()) in _locks:
            _repair(path)
        rows = []
        for number, line in enumerate(whole.split(b"\n")[:-1], 1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise WorkbenchError(f"{path}, line {number}, is not a JSON object: {_again(self.path)}")
            rows.append(row)
        return rows

    def rewind(self, name: str, step: int) -> list[dict]:
        """Rows of `<name>.jsonl` up to `step`, those of a checkpoint; later ones are dropped, also from the file."""
        rows = self.read(name)
        kept = [row for row in rows if row.get("step", 0) <= step]
        if len(kept) < len(rows):
            path = self._writable(_jsonl(name))
            lines = [self._line(path.name, row) for row in kept]
            write(path, "".join(lines)) if lines else path.unlink()
        return kept

    def write_json(self, name: str, obj: Any) -> None:
        """Write `obj` as JSON to the file `name`, at once: a crash leaves the old file or the new one, never half."""
        write(self._writable(name), json.dumps(_plain(obj, name), indent=1) + "\n")

    @contextmanager
    def folder(self, name: str) -> Iterator[Path]:
        """`with run.folder("model") as path:` writes an artifact folder that appears complete, or not at all.

        The files go to `<name>.tmp`; without an error it takes the place of `<name>`, whose old version is removed.
        """
        path = self._writable(name)
        temporary, old = path.with_name(name + ".tmp"), path.with_name(name + ".old")
        _remove(temporary)
        with _guard(self.path, _size(path)):
            try:
                temporary.mkdir()
                yield temporary
                for file in _files(temporary):
                    with open(temporary / file, "r+b") as opened:
                        os.fsync(opened.fileno())
            except BaseException:  # also on Ctrl-C: half a folder is none
                _remove(temporary)
                raise
            _remove(old)
            if path.exists():
                path.rename(old)  # a crash between the two renames is mended by the next open
            temporary.rename(path)
            _remove(old)

    def finish(self, **summary: Any) -> None:
        """Hash every file and write `DONE`. Nothing can be written to the run afterwards."""
        if self.done:
            raise WorkbenchError(f"{self.path} is finished already: {_again(self.path)}")
        if waste := sorted(entry.name for entry in self.path.iterdir() if entry.suffix == ".tmp"):
            raise WorkbenchError(f"{self.path / waste[0]} is still being written: finish the run after it")
        files = {name: [_size(self.path / name), hash_file(self.path / name)] for name in _files(self.path)}
        body = {"summary": _plain(summary, "summary"), "files": files, "finished": _now()}
        write(self.path / "DONE", json.dumps({**body, "sha256": _digest(body)}, indent=1) + "\n")
        self.done, self.summary = True, body["summary"]
        _unlock(self.path)

    def _settle(self) -> Run:
        """After a crash: put back what was between two names, drop half lines; or, when DONE is there, verify."""
        if not (self.path / "DONE").exists():
            for entry in list(self.path.iterdir()):
                if entry.suffix == ".tmp":
                    _remove(entry)
                elif entry.suffix == ".old":
                    _remove(entry) if entry.with_suffix("").exists() else entry.rename(entry.with_suffix(""))
                elif entry.suffix == ".jsonl":
                    _repair(entry)
            return self
        body = _done(self.path)
        for name, (size, sha256) in body["files"].items():
            file = self.path / name
            if not file.is_file():
                raise WorkbenchError(f"{file} is missing from a finished run: {_again(self.path)}")
            if file.stat().st_size != size or hash_file(file) != sha256:
                raise WorkbenchError(f"{file} is not the file that the run wrote (hash mismatch): {_again(self.path)}")
        self.done, self.summary = True, body["summary"]
        return self

    def _writable(self, name: str) -> Path:
        if self.done:
            raise WorkbenchError(f"{self.path} is finished, so {name} cannot be written: {_again(self.path)}")
        place = self.path.resolve()
        if not any(str(folder) in _locks for folder in (place, *place.parents)):  # a run may lie in another
            raise WorkbenchError(f"{self.path} was opened to be read, so {name} cannot be written: take Run.open")
        plain = name and Path(name).name == name and not name.startswith(".") and name not in _OURS
        if not plain or name.endswith((".tmp", ".old")):
            raise WorkbenchError(f"{name!r} cannot be a name in a run: give a plain name such as 'records' or 'model'")
        return self.path / name

    def _line(self, name: str, row: Mapping | str) -> str:
        if isinstance(row, str):
            try:
                row = json.loads(row)
            except ValueError:
                raise WorkbenchError(f"{self.path / name}: {row[:60]!r} is not a line of JSON") from None
        if not isinstance(row, Mapping):
            raise WorkbenchError(f"{self.path / name}: a row is a mapping, not {type(row).__name__}")
        return _dumps(row, name) + "\n"


def _name(params: Mapping[str, Any], inputs: Mapping[str, str | Path] | None) -> tuple[dict, dict[str, str], str]:
    """Parameters as JSON has them, hashes of the inputs, and the key that both make."""
    params = _plain(params, "params")
    hashes = {name: _input(name, Path(source)) for name, source in (inputs or {}).items()}
    return params, hashes, _digest({"params": params, "inputs": hashes})


def _input(name: str, source: Path) -> str:
    if not source.exists():
        raise WorkbenchError(f"input {name!r} is not there: run the stage that makes {source} first")
    if (source / "run.json").exists() and not (source / "DONE").exists():
        raise WorkbenchError(f"input {name!r} is an unfinished run: run the stage that makes {source} to its end first")
    return hash_tree(source)


def _about(path: Path) -> dict | None:
    """What run.json says; None where no run is."""
    if not path.is_dir() or all(entry.suffix == ".tmp" for entry in path.iterdir()):
        if path.exists() and not path.is_dir():
            raise WorkbenchError(f"{path} is a file where a run's folder belongs: move it away and run again")
        return None
    if not (path / "run.json").exists():
        raise WorkbenchError(f"{path} holds files but no run.json, so it is no run: move it away and run again")
    about = _load(path / "run.json")
    if not isinstance(about, dict) or about.get("key") != _digest({k: about.get(k) for k in ("params", "inputs")}):
        raise WorkbenchError(f"{path / 'run.json'} is corrupted: {_again(path)}")
    return about


def _done(path: Path) -> dict:
    """What a finished run's DONE says."""
    body = _load(path / "DONE")
    if not isinstance(body, dict) or body.pop("sha256", None) != _digest(body):
        raise WorkbenchError(f"{path / 'DONE'} is corrupted: {_again(path)}")
    return body


def _aside(path: Path, key: str) -> Path:
    names = (path.with_name(f"{path.name}~{key[:8]}{more}") for more in ("", *(f"-{n}" for n in range(2, 10**6))))
    return next(name for name in names if not name.exists())


def _changes(about: dict, params: dict, hashes: dict) -> str:
    def named(params, inputs):
        return {**_flat(params), **{f"input {name}": sha256[:8] for name, sha256 in inputs.items()}}

    before, after = named(about["params"], about["inputs"]), named(params, hashes)
    pairs = {name: (before.get(name, "absent"), after.get(name, "absent")) for name in {**before, **after}}
    return ", ".join(f"{name} {str(a)[:60]} → {str(b)[:60]}" for name, (a, b) in pairs.items() if a != b)


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and (tree or not name):
        return {k: v for key, sub in tree.items() for k, v in _flat(sub, f"{name}.{key}" if name else key).items()}
    return {name: tree}


def _surroundings() -> dict:
    """What surrounds the run without being asked for: it is recorded, and takes no part in the comparison."""
    versions = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            pass
    home = Path(__file__).parent
    sources = {str(file.relative_to(home)): hash_file(file) for file in sorted(home.rglob("*.py"))}
    code = {"git": _git(home), "sha256": _digest(sources)}
    return {"packages": versions, "code": code, "started": _now()}


def _git(folder: Path) -> str | None:
    """The revision, with '+' when the package's files differ from it; None without git."""
    ask = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def _plain(obj: Any, where: str) -> Any:
    """`obj` as it will be read back, so that what is compared is what was kept."""
    return json.loads(_dumps(obj, where))


def _dumps(obj: Any, where: str) -> str:
    def plain(value):
        if is_dataclass(value) and not isinstance(value, type):
            return asdict(value)
        if isinstance(value, Mapping):
            return dict(value)
        if isinstance(value, Path):
            return str(value)
        if hasattr(value, "tolist"):  # numpy and torch, scalars as well
            return value.tolist()
        raise TypeError(f"a {type(value).__name__} cannot be kept as JSON")

    try:
        return json.dumps(obj, default=plain, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise WorkbenchError(f"{where}: {error}; give numbers, text, lists, mappings, or None for unknown") from error


def _digest(obj: Any) -> str:
    return hashlib.sha256(json.dumps(obj, sort_keys=True).encode()).hexdigest()


def _files(folder: Path) -> list[str]:
    """Relative names of the files below a folder, sorted, with `/` on every system."""
    found = (path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in found if path.suffix != ".tmp")
    return sorted(name for name in names if name != "DONE")


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def write(path: Path, text: str) -> None:
    """All or nothing, and on the disk: a reader never sees half a file."""
    temporary = path.with_name(path.name + ".tmp")
    data = text.encode()
    with _guard(path.parent, len(data)):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:  # also on Ctrl-C: the old file stays whole
            temporary.unlink(missing_ok=True)
            raise


def _repair(path: Path) -> None:
    """Cut a last line that lacks its line end."""
    if not path.exists():
        return
    with open(path, "r+b") as file:
        size = keep = file.seek(0, os.SEEK_END)
        while keep:
            block = max(0, keep - 65536)
            file.seek(block)
            at = file.read(keep - block).rfind(b"\n")
            if at >= 0:
                keep = block + at + 1
                break
            keep = block
        if keep < size:
            file.truncate(keep)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return sum((path / name).stat().st_size for name in _files(path)) if path.is_dir() else _stat(path)


def _stat(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _jsonl(name: str) -> str:
    return name if name.endswith(".jsonl") else name + ".jsonl"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _again(folder: Path) -> str:
    return f"delete {folder} and run again"


@contextmanager
def _guard(folder: Path, need: int = 0) -> Iterator[None]:
    """Tell a full disk by its name, whoever met it: Python (errno) or a writer in another language (the text)."""
    try:
        yield
    except Exception as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)
        if not full:
            raise
        megabytes = max(16, -(-need >> 20))
        raise WorkbenchError(
            f"the disk is full at {folder}: free {megabytes} MB or more, then run again; nothing finished is lost"
        ) from error


def _lock(path: Path) -> None:
    """Keep other processes from writing the same run; freed by finish, or by the system when the process ends."""
    name = str(path.resolve())
    if name in _locks:
        return
    try:
        import fcntl
    except ImportError:  # Windows: other processes are not kept away
        _locks[name] = None
        return
    file = open(path.with_name(f".{path.name}.lock"), "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise WorkbenchError(f"{path} is being written by process {owner}: wait for it, or stop it") from None
    except OSError:  # a file system without locks
        pass
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    _locks[name] = file


def _unlock(path: Path) -> None:
    if file := _locks.pop(str(path.resolve()), None):
        file.close()
