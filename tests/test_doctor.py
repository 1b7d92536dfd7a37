from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from workbench import doctor
from workbench.types import WorkbenchError

ROOT = Path(__file__).resolve().parents[1]


def test_table_for_machines():
    done = subprocess.run(
        [sys.executable, "-m", "workbench", "doctor", "--json"], cwd=ROOT, capture_output=True, text=True
    )
    rows = {row["item"]: row for row in json.loads(done.stdout)}
    assert list(rows) == "python torch gpu bf16 4-bit kernel browser cores memory disk lock".split()
    for row in rows.values():
        assert row["state"] in ("ok", "limited", "missing")
        assert row["found"]
        assert row["advice"] or row["state"] == "ok", "something is wrong and nothing is said about what to do"
    assert done.returncode == int(any(row["needed"] and row["state"] == "missing" for row in rows.values()))


def test_measuring_leaves_the_threads_as_they_are():
    """Bugs: what runs after `doctor` in this process has one thread; a ratio that a busy neighbour makes."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = doctor._bf16().found
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert 0.01 < float(found.split()[0]) < 20


def test_unknown_profile():
    with pytest.raises(WorkbenchError, match="unknown profile 'nanu'"):
        doctor.examine("nanu")


def test_lock_drift(tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text("# words\na==1.0\nb==2.0\nc==3.0 ; sys_platform == 'nowhere'\nd==4.0\n")

    def version(name):
        if name == "d":
            raise metadata.PackageNotFoundError(name)
        return {"a": "1.0", "b": "2.1"}[name]

    check = doctor._lock(lock, version)
    assert check.state == "limited"
    assert check.found == "1 absent, 1 at another version: d, b 2.1"
    lock.write_text("a==1.0\n")
    assert doctor._lock(lock, version).state == "ok"


def test_too_little_disk_and_memory(monkeypatch):
    assert doctor._disk(10**9).state == "missing"
    assert doctor._memory(10**9).state == "missing"
    monkeypatch.setattr(doctor, "_container_limit", lambda: [doctor.GB])
    assert doctor._memory(4).state == "missing", "a container's limit counts, not the machine's memory"


def test_kernel_of_another_python(monkeypatch):
    """Papermill runs whatever `python3` names, so a foreign kernelspec means another environment, silently."""
    from jupyter_client import kernelspec

    foreign = kernelspec.KernelSpec(argv=["/nowhere/bin/python", "-m", "ipykernel_launcher"], display_name="other")
    monkeypatch.setattr(kernelspec.KernelSpecManager, "get_kernel_spec", lambda self, name: foreign)
    check = doctor._kernel()
    assert check.state == "limited" and "ipykernel install" in check.advice


def test_browser_is_found_by_its_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("BROWSER_PATH", sys.executable)
    assert doctor.browser() == sys.executable
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "absent"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "MAC_BROWSER", str(tmp_path / "absent"))
    assert doctor.browser() is None
    assert doctor._browser().state == "missing"
