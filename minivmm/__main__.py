"""`python -m minivmm` is the `minivmm` command."""

import sys

from minivmm.cli.main import run

if __name__ == "__main__":
    sys.exit(run())
