"""What is kept: cells, runs, manifests of tables."""
