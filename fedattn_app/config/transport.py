"""The run-config keys of what travels between nodes and server, and the registry of codecs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedattn_app.config.schema import Registered, Section, setting

CODECS: Mapping[str, Registered] = {
    "float32": Registered("fedattn_app.transport.codec:Float32"),
    "float16": Registered("fedattn_app.transport.codec:Float16"),
}


@dataclass(frozen=True)
class TransportConfig(Section):
    """The encoding of an update on its way from a client to the server."""

    title: ClassVar[str] = "Transport"

    codec: str = setting(
        "float32",
        "how a client encodes its update for the server: `float32` sends it unchanged; `float16` "
        "rounds it to half precision, which halves the bytes",
        choices=CODECS,
    )
