"""``python -m benchmarks``; see ``benchmarks.cli.main``."""

from .cli.main import main

if __name__ == "__main__":
    main()
