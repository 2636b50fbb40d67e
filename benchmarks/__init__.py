"""How methods are compared: see docs/architecture.md for the rooms."""

EXTENSIONS = dict.fromkeys(("SOURCES", "TASKS", "EXECUTORS"), (f"{__name__}.detection.extension",))
"""Modules of upper rooms that bring things of their own to registries; see :mod:`benchmarks.common.registry`."""
