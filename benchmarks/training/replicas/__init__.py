"""Processes that train one cell together, and what they exchange."""
