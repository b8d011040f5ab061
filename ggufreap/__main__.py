"""Lets `python -m ggufreap` be the command line."""

from ggufreap.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
