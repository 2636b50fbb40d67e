"""Where groups of cells run."""
