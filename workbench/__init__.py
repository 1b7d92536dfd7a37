"""workbench: a notebook-first research workbench for reasoning models."""

import logging

__version__ = "0.1.0"

# On CPUs with bf16 units each start would warn that a kernel is missing, which `models.load_model` never lets be used.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda said: "gemm_4bit_forward" not in str(said.msg))
