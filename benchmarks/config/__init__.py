"""YAML to typed protocols, tables and published values."""
