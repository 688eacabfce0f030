"""`python -m spoor` is `spoor`."""

from spoor.cli import main

if __name__ == "__main__":
    main()
