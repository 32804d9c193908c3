"""A module whose import starts a thread that keeps running. A process that has imported this module cannot be
forked.
"""

import threading

from support.a_child import main

threading.Thread(target=threading.Event().wait, daemon=True).start()

if __name__ == "__main__":
    main()
