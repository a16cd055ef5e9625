"""`python -m evolora` is `evolora`."""

import sys

from evolora.cli import main

if __name__ == "__main__":
    sys.exit(main())
