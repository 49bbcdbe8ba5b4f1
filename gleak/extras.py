"""What to install where an optional dependency is missing."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Imports inside this block come with an extra of gleak: one that fails says which.

    Raises ModuleNotFoundError, an ImportError, that names the package and what installs it.

    >>> with extra("samples"):
    ...     import a_package_that_is_not_there
    Traceback (most recent call last):
    ...
    ModuleNotFoundError: a_package_that_is_not_there is not installed: pip install "gleak[samples]"
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "gleak"):  # no dependency
            raise
        raise ModuleNotFoundError(
            f'{missing} is not installed: pip install "gleak[{name}]"', name=error.name
        ) from None
