"""The standalone trainer: python hybrid_ga_rl.py --gens 20 --pop 8

The same as `evolora train`; `--help` lists its options.
"""

import sys

from evolora.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
