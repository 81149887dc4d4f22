"""Play the neural game in a window: ``python play.py``, with the options of ``gamengen play``."""

import sys

from gamengen.cli import main

if __name__ == "__main__":
    main(["play", *sys.argv[1:]])
