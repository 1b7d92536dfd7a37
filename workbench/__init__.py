"""workbench: a notebook-first research workbench for reasoning models."""

__version__ = "0.1.0"
