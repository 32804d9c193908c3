"""A module that never comes to its end, as one on a file system that does not answer."""

import time

time.sleep(600)
