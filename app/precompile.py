"""Compile what modules import: run while the image is built, as root (see Dockerfile).

Bases have the standard library's sources only (Debian compiles them in a script that runs at installation, distroless
bases run none), and at run time nobody may write beside them. Without this each start of a pod compiles them in memory.

Usage: python3 precompile.py MODULE...; raises ModuleNotFoundError for a module that the image does not have.
"""

from __future__ import annotations

import importlib
import py_compile
import sys


def main(names: list[str]) -> None:
    """Import modules, and compile them and all that they brought in, wherever it lies."""
    for name in names:
        importlib.import_module(name)
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and file.endswith(".py"):
            # Valid whatever the file's time is: times are taken off the image's layers.
            py_compile.compile(file, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)


if __name__ == "__main__":
    main(sys.argv[1:])
