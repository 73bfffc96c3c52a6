"""The run-config keys of what travels: how an update is encoded."""

from collections.abc import Mapping
from dataclasses import dataclass

from fedattn_app.config.schema import Section, setting

# Class paths, ``module:class``, by the name of the codec.
CODECS: Mapping[str, str] = {
    "float32": "fedattn_app.transport.codec:Float32",
    "float16": "fedattn_app.transport.codec:Float16",
}


@dataclass(frozen=True)
class TransportConfig(Section):
    """How an update is encoded on its way to the server."""

    codec: str = setting(
        "float32",
        "how the arrays of an update are encoded on their way up: as they are, or rounded to half "
        "precision",
        choices=CODECS,
    )
