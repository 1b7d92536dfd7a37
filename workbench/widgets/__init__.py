"""What people do by hand inside a notebook, in JupyterLab and marimo alike."""

from .labeller import Agreement, Labeller, Session, kappa

__all__ = ["Agreement", "Labeller", "Session", "kappa"]
