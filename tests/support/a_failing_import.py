"""A module that fails to be imported, but can be run."""

from support.a_child import main

if __name__ == "__main__":
    main()
else:
    raise RuntimeError("this module cannot be imported")
