"""Python imports this in each process of a test's Ray cluster: ``aloftrag`` gets stand-ins of ``tests.cluster.scripted``."""

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_REPLACED = {  # module: name in it, name of the stand-in
    "aloftrag.engine": {"annotator": "starter", "starter": "starter"},
    "aloftrag.steps.tune_adapter": {"_backend": "backend"},
}
if os.environ.get("ALOFTRAG_TEST_EMBEDDER") == "scripted":
    _REPLACED["aloftrag.retrieval.embedder"] = {"Embedder": "Embedder"}


def _stand_in(name: str) -> Callable[..., Any]:
    """The stand-in of that name, imported when it is called: it imports ``aloftrag`` itself."""

    def called(*arguments: Any, **options: Any) -> Any:
        from tests.cluster import scripted

        return getattr(scripted, name)(*arguments, **options)

    return called


class _StandIns(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _REPLACED:
            return None
        stand_ins = _REPLACED.pop(name)  # what follows asks this finder again
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_replace(module: ModuleType) -> None:
            execute(module)
            for replaced, name_of_it in stand_ins.items():
                setattr(module, replaced, _stand_in(name_of_it))

        spec.loader.exec_module = execute_and_replace  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _StandIns())
