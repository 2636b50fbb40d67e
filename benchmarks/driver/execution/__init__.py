"""Jobs of a plan on the places there are: this process, workers, a cluster."""
