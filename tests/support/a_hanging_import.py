"""A module whose import never ends, like one on a file system that does not respond."""

import time

time.sleep(600)
