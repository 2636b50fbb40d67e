"""This process: its settings, the signals that stop it, its children."""
