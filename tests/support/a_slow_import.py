"""A module that takes some seconds to import, but starts at once as a program."""

import time

from support.a_child import main

if __name__ == "__main__":
    main()
else:
    time.sleep(20)
