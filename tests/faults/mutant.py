"""A pytest plugin that takes one guard out of the source while it is imported: LTBENCH_MUTANT names it by its place in the list.

LTBENCH_MUTANT=3 python -m pytest -p tests.faults.mutant tests/test_files.py::...
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType

from tests.faults.catalogue import MUTANTS

_MUTANT = MUTANTS[int(os.environ["LTBENCH_MUTANT"])]


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        text = self.get_data(self.path).decode()  # past the cache of compiled files, and never into it
        assert text.count(_MUTANT.old) == 1, (
            f"{_MUTANT.module} holds the guard {text.count(_MUTANT.old)} times"
        )
        return compile(text.replace(_MUTANT.old, _MUTANT.new), self.path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _MUTANT.module:
            return None
        found = importlib.machinery.PathFinder.find_spec(fullname, path)
        if found is not None and found.origin is not None:
            found.loader = _Loader(fullname, found.origin)
        return found


assert _MUTANT.module not in sys.modules, "imported before its guard could be taken out"
sys.meta_path.insert(0, _Finder())
