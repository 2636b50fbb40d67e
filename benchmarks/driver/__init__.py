"""From a request over a plan and its groups to a table."""
