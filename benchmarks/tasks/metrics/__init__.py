"""Modules of the library ``evaluate`` that ship with the suite, so that no hub is needed."""
