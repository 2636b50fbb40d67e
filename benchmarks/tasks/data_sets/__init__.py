"""One file for each data set, or family of them. Each with ``TASKS`` brings some tasks."""
