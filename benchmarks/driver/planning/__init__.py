"""A request becomes a plan: its cells, what it takes, what it says of itself."""
