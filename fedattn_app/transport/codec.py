"""Encode updates on the node and decode them on the server: one class per codec.

The node encodes its arrays last, after everything else, noise included. The server decodes a reply
before any other code reads it.
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
        """Return `arrays` in the form in which they travel.

        The result may share memory with `arrays`, which must not change afterwards.
        """

    def decode(self, record: ArrayRecord, sent: ArrayRecord) -> ArrayRecord:
        """Return the arrays that `record` encodes, with the dtypes in `sent`.

        `sent` holds the arrays that the server sent to the node. The server compares names, shapes
        and dtypes of the result with it afterwards. A reply counts as failed if this raises any
        exception.
        """


class Float32:
    """Sends arrays as they are, whatever their dtype."""

    def encode(self, arrays: Mapping[str, NDArray]) -> ArrayRecord:
        """Return the arrays as they are."""
        return lazy_record(arrays)

    def decode(self, record: ArrayRecord, sent: ArrayRecord) -> ArrayRecord:
        """Return `record` as it is."""
        return record


class Float16:
    """Sends floating-point arrays in half precision: half the bytes, 11 significant bits.

    Values beyond ±65,504 become infinite, so that the server refuses the reply.
    """

    def encode(self, arrays: Mapping[str, NDArray]) -> ArrayRecord:
        """Return floating-point arrays rounded to float16, and other arrays as they are."""
        with np.errstate(over="ignore"):
            return lazy_record(
                {
                    name: array.astype(np.float16) if array.dtype.kind == "f" else array
                    for name, array in arrays.items()
                }
            )

    def decode(self, record: ArrayRecord, sent: ArrayRecord) -> ArrayRecord:
        """Return float16 arrays in the dtypes of `sent`, and other arrays as they are."""
        decoded = {}
        for name, array in record.items():
            values, dtype = array.numpy(), np.dtype(sent[name].dtype)
            encoded = values.dtype == np.float16 and dtype.kind == "f"
            decoded[name] = values.astype(dtype) if encoded else values
        return lazy_record(decoded)


def codec_of(config: Config) -> Codec:
    """Return the codec that `config` names."""
    codec: Codec = CODECS[config.transport.codec].load()()
    return codec
