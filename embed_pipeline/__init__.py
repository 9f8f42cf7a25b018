"""embed-pipeline: a folder of documents becomes a tuned, exported and served text-embedding model.

The public Python API; each name is imported when it is first used, so that importing the package costs nothing:

    import embed_pipeline as ep

    documents = ep.read_documents("data/documents")
    pairs = ep.generate(documents)
    data = ep.mine(pairs, documents)
    model = ep.train(data, "tuned")
    print(ep.evaluate(model, data).verdicts["generated"].sentence)
    ep.export(model, "onnx", data)

Settings are objects that say what is wrong with a value:

>>> from embed_pipeline import Settings
>>> Settings().training_data.relative_margin
0.05
>>> Settings(training={"epochs": "many"})
Traceback (most recent call last):
    ...
pydantic_core._pydantic_core.ValidationError: ...
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embed_pipeline.library import (
        DocumentSet,
        TrainingSet,
        baseline,
        evaluate,
        export,
        generate,
        mine,
        read_documents,
        train,
    )
    from embed_pipeline.settings import Settings, load_settings

__all__ = [
    "DocumentSet",
    "Settings",
    "TrainingSet",
    "baseline",
    "evaluate",
    "export",
    "generate",
    "load_settings",
    "mine",
    "read_documents",
    "train",
]
_SETTINGS = {"Settings", "load_settings"}


def __getattr__(name: str) -> object:
    """A public name, from the module that defines it; ``__version__``, from the installed package."""
    if name == "__version__":
        from importlib.metadata import version

        return version("embed-pipeline")
    if name not in __all__:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(f"{__name__}.{'settings' if name in _SETTINGS else 'library'}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted({*globals(), *__all__, "__version__"})
