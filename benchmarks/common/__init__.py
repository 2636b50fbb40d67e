"""What every room uses: files, environment, seeds, weights files, plugins."""
