"""gleak: what a federated server can read from the updates that its clients send.

Data flows one way: data -> client -> update -> labels -> inversion -> metrics -> figures.
What this package shows is listed in `__init__.pyi`, and imported when it is first used.
"""

import lazy_loader

# The one eager import: a function with the name of its module would else be hidden by it.
from gleak.provenance import provenance as provenance

__version__ = "0.1.0"

__getattr__, _, everything = lazy_loader.attach_stub(__name__, __file__)
# What needs an extra is there, but not listed: help(gleak) looks at all that is.
__all__ = [name for name in everything if name != "figures"]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
