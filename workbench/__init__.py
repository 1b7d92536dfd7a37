"""workbench: a notebook-first research workbench for reasoning models."""

import logging

__version__ = "0.1.0"

# On CPUs with bf16 units each start would warn that a kernel is missing, which `models.load_model` never lets it use.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
