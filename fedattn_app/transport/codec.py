"""How an update is encoded on its way up: one class a codec, both sides together.

The node encodes its arrays after everything else has been done to them, noise included. The server
decodes a reply before anything else looks at it.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from flwr.app import ArrayRecord

from fedattn_app.config import CODECS, Config
from fedattn_app.transport.lazy_array import lazy_record
from fedattn_app.types import NDArray


class Codec(Protocol):
    """Encodes named arrays on a node and decodes them on the server."""

    def encode(self, arrays: Mapping[str, NDArray]) -> ArrayRecord:
        """Return what travels. Nobody may change `arrays` afterwards."""

    def decode(self, record: ArrayRecord, sent: ArrayRecord) -> ArrayRecord:
        """Return the arrays in `record`, with the dtypes of those that the node was sent.

        Any exception is a failed reply. `sent` has the names, shapes and dtypes that are expected;
        whether the result has them too is checked afterwards.
        """


class Float32:
    """Arrays travel as they are, whatever their dtype."""

    def encode(self, arrays: Mapping[str, NDArray]) -> ArrayRecord:
        """Return the arrays."""
        return lazy_record(arrays)

    def decode(self, record: ArrayRecord, sent: ArrayRecord) -> ArrayRecord:
        """Return the record."""
        return record


class Float16:
    """Floating-point arrays travel in half precision: half the bytes, 11 significant bits.

    Values beyond ±65,504 become infinite, so that the reply is refused.
    """

    def encode(self, arrays: Mapping[str, NDArray]) -> ArrayRecord:
        """Return the arrays, rounded to the nearest number of half precision."""
        with np.errstate(over="ignore"):
            return lazy_record(
                {
                    name: array.astype(np.float16) if array.dtype.kind == "f" else array
                    for name, array in arrays.items()
                }
            )

    def decode(self, record: ArrayRecord, sent: ArrayRecord) -> ArrayRecord:
        """Return the arrays in the dtypes of `sent`."""
        decoded = {}
        for name, array in record.items():
            values = array.numpy()
            half = values.dtype == np.float16
            decoded[name] = values.astype(sent[name].dtype) if half else values
        return lazy_record(decoded)


def codec_of(config: Config) -> Codec:
    """Return the codec that `config` names."""
    codec: Codec = CODECS[config.transport.codec].load()()
    return codec
