"""Python imports this in each process of a test's Ray cluster: ``aloftrag`` gets stand-ins of ``tests.cluster.scripted``."""

import importlib.abc
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_REPLACED = {  # module: name in it, name of the stand-in
    "aloftrag.engine": {"annotator": "starter", "starter": "starter"},
    "aloftrag.steps.tune_adapter": {"_backend": "backend"},
}
if os.environ.get("ALOFTRAG_TEST_TRAINING"):
    _REPLACED["aloftrag.training.strategies"] = {"start": "strategy"}
    _REPLACED["aloftrag.training.loop"] = {"_step": "training_step"}
    _REPLACED["aloftrag.retrieval.embedder"] = {"Embedder": "Embedder"}
    _REPLACED["transformers"] = {"AutoConfig": "AutoConfig", "AutoTokenizer": "AutoTokenizer"}


class _StandIn:
    """The stand-in of that name, imported when it is used: it imports ``aloftrag`` itself."""

    def __init__(self, name: str):
        self._name = name

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._found()(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._found(), name)

    def _found(self) -> Any:
        from tests.cluster import scripted

        return getattr(scripted, self._name)


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
                setattr(sys.modules[name], replaced, _StandIn(name_of_it))  # transformers puts another module in its own place

        spec.loader.exec_module = execute_and_replace  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _StandIns())
