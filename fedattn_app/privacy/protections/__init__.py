"""How an update is protected: one class per protection, selected by the key ``privacy``."""

from fedattn_app.config import PROTECTIONS, Config
from fedattn_app.privacy.protections.base import Protection


def protection_of(config: Config) -> Protection:
    """Return the protection that `config` selects, with its settings."""
    protection: type[Protection] = PROTECTIONS[config.privacy.privacy].load()
    return protection(config)


__all__ = ["Protection", "protection_of"]
