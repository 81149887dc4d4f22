"""``python -m gamengen`` is the ``gamengen`` command."""

from gamengen.cli import main

if __name__ == "__main__":
    main()
