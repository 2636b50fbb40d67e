"""What the shipped tables have in common."""

from __future__ import annotations

from benchmarks.config.table_spec import load_table, table_names


def methods_of_tables() -> set[str]:
    """Names of all rows' methods, modified and combined ones among them, in any preset of a shipped table."""
    presets = [table.preset(name) for table in map(load_table, table_names()) for name in table.presets]
    return {row.method for preset in presets for row in preset.methods or ()}
