"""Runs `spoor` as `python -m spoor`."""

from spoor.cli import main

if __name__ == "__main__":
    main()
