"""`python -m check.history`."""

from check.history.command import main

if __name__ == "__main__":
    main()
