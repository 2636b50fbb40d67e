"""The loop, exact resume, and the random streams that make a cell independent of its company."""
