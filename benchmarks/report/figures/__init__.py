"""Figures for one column of a paper, in PDF and PNG."""
