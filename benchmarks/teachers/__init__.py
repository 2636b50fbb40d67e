"""Trained networks that teach: entries, files, verification."""
