"""`python -m scripts <command>`: what the makefile calls."""

from scripts.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
