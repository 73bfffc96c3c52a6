"""What runs on a node and in the two apps: model, data, local training, results.

    from fedattn_app import Config, Predictor, simulate

imports a name from its module at its first use, so that the package itself costs nothing to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedattn_app.analysis.predictor import Predictor
    from fedattn_app.config import Config
    from fedattn_app.simulation import simulate

__all__ = ["Config", "Predictor", "simulate"]

_MODULES = {
    "Config": "fedattn_app.config",
    "Predictor": "fedattn_app.analysis.predictor",
    "simulate": "fedattn_app.simulation",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
