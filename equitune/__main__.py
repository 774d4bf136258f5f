"""`python -m equitune` is the same program as `equitune`."""

from equitune.cli import main

if __name__ == "__main__":
    main()
