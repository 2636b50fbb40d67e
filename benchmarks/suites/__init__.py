"""The pytest-benchmark suites, the baseline loop and committed measurements."""
