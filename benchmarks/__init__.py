"""How methods are compared: see docs/architecture.md for the rooms."""

EXTENSIONS = (f"{__name__}.detection.extension",)
"""Modules of upper rooms that bring networks, tasks and engines of their own; see :mod:`benchmarks.common.registry`."""
