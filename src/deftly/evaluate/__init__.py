"""Which policy is meant, episodes of it, and the report.

`deftly.evaluate` is both this package and the function of the Python API. Python binds a package to its name as soon as
any module of it is imported, so the package can be called.
"""

import importlib
import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **settings: Any) -> Any:
        """Call `deftly.api.evaluate`."""
        return importlib.import_module("deftly.api").evaluate(*args, **settings)


sys.modules[__name__].__class__ = _Callable
