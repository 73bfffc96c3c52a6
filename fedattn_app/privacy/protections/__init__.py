"""How an update is protected: one class per protection, selected by the key ``privacy``."""

from pkgutil import resolve_name

from fedattn_app.config import PROTECTIONS, Config
from fedattn_app.privacy.protections.base import Protection


def protection_of(config: Config) -> Protection:
    """Return the protection that `config` selects, with its settings."""
    kind: type[Protection] = resolve_name(PROTECTIONS[config.privacy.privacy].class_path)
    return kind(config)


__all__ = ["Protection", "protection_of"]
