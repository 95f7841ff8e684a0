"""Import large libraries without optional packages that they import and we never use, which takes seconds.

In: names of packages. While the context lasts, their imports fail as if they were not installed.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_packages(*names: str) -> Iterator[None]:
    """Hide packages from what is imported here; one that has been imported before stays.

    A library that finds one missing keeps its features that need it switched off in this process.
    """
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None makes an import fail
    try:
        yield
    finally:
        for name in hidden:
            if sys.modules[name] is None:
                del sys.modules[name]
