"""The extras that install the optional modules of the tests."""

# An extra has the name of its module, except for these modules.
EXTRAS = {"Box2D": "box2d", "kubernetes_validate": "dev"}


def extra_of(module: str) -> str:
    """The extra of zmqrl that installs ``module``."""
    return EXTRAS.get(module, module)
