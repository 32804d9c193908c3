"""A module whose import starts a thread that lives on, so that a process that has imported it cannot be forked."""

import threading

from support.a_child import main

threading.Thread(target=threading.Event().wait, daemon=True).start()

if __name__ == "__main__":
    main()
