"""Hides the packages of all extras from each Python process that has this directory in its PYTHONPATH."""

import sys

from support.without import finders_without

from zmqrl.local.extras import EXTRAS

sys.meta_path = finders_without(*EXTRAS)
