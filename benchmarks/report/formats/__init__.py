"""A layout as LaTeX, Markdown, CSV."""
