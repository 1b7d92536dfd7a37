from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from workbench import doctor, smollm2
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
    monkeypatch.setattr(doctor, "_container", lambda: [(doctor.GB, doctor.GB)])
    assert doctor._memory(4).state == "missing", "a container's limit counts, not the machine's memory"
    monkeypatch.setattr(doctor, "_container", lambda: [(doctor.GB, doctor.GB // 4)])
    check = doctor._memory(1)
    assert check.state == "limited" and check.found == "1.0 GB, 0.2 GB free", "and what others in it hold is not free"


@pytest.mark.parametrize("names", ["max current", "limit_in_bytes usage_in_bytes"])
def test_what_a_container_has_left(tmp_path, names):
    """Bug: the limit was taken for what is free."""
    folder = tmp_path / "memory" if "bytes" in names else tmp_path
    folder.mkdir(exist_ok=True)
    assert doctor._container(tmp_path) == []
    for name, number in zip(names.split(), (1000, 700), strict=True):
        (folder / f"memory.{name}").write_text(f"{number}\n")
    (folder / "memory.stat").write_text("anon 500\ninactive_file 0\ntotal_inactive_file 200\n")
    assert doctor._container(tmp_path) == [(1000, 500)]
    (folder / f"memory.{names.split()[0]}").write_text("max\n")
    assert doctor._container(tmp_path) == []


def test_what_a_pretrained_profile_needs_is_looked_for(monkeypatch, tmp_path):
    """Bugs: "only for profile gpu" of what trains small's PRM; adapters, the base and the data were not looked for."""
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: version("absent" if name == "peft" else name))
    check = doctor._four_bit("small")
    assert (check.state, check.needed) == ("missing", True) and check.found.endswith("no peft")
    assert "EXTRAS=small" in check.advice and not doctor._four_bit("nano").needed

    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    check = doctor._data("small")
    assert check.state == "missing" and "no gsm8k/test.jsonl, gsm8k/train.jsonl, prm800k/phase1_train*" in check.found
    assert str(tmp_path) in check.advice
    for name in ("gsm8k/test.jsonl", "gsm8k/train.jsonl", "prm800k/phase1_train.jsonl", "prm800k/phase1_test.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert doctor._data("small").state == "ok"

    monkeypatch.setattr(smollm2, "FOLDER", tmp_path)
    assert doctor._base("small").state != "ok" or smollm2.PACKAGE in doctor._base("small").found
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "config.json").write_text("{}")
    assert str(tmp_path) in doctor._base("small").found
    cached = {"config.json": str(tmp_path / "config.json")}
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda _, name: cached.get(name))
    assert doctor._base("gpu").state == "limited", "a config alone is no base"
    cached["model.safetensors"] = str(tmp_path / "model.safetensors")
    assert str(tmp_path) in doctor._base("gpu").found

    has = doctor.util.find_spec
    monkeypatch.setattr(doctor.util, "find_spec", lambda name, *more: None if name == "transformers" else has(name))
    checks = {check.item: check for check in doctor.examine("small")}
    assert checks["memory"].state == "missing" and "transformers" in checks["memory"].found and "data" not in checks


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
