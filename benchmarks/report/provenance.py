"""When, where and by which code a set of runs was computed, in words. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from ..store import documents


def provenance(facts: Sequence[documents.Environment]) -> tuple[str, ...]:
    """Dates, machines, commits and versions of a set of runs, each named once."""
    if not facts:
        return ()
    dates = sorted({fact["date"] for fact in facts})
    span = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    commits = ", ".join(sorted({fact["commit"] or "unknown" for fact in facts}))
    machines = ", ".join(sorted({_machine(fact) for fact in facts}))
    torches = ", ".join(sorted({fact["versions"]["torch"] for fact in facts}))
    return (f"run {span} at commit {commits}", f"on {machines} with torch {torches}")


def _machine(fact: documents.Environment) -> str:
    """Hardware and arithmetic; runs of before the latter was recorded have the former alone."""
    return fact["machine"] + (f" ({fact['arithmetic']['summary']})" if "arithmetic" in fact else "")
