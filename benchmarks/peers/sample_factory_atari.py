"""Train an Atari game with Sample Factory. The import of ale_py registers the games in each process of Sample
Factory.
"""

import sys

import ale_py  # noqa: F401
from sf_examples.atari.train_atari import main

if __name__ == "__main__":
    sys.exit(main())
