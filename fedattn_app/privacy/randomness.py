"""Secret random numbers, for sampling examples and for noise.

The stream is AES-256 in counter mode, with a key from the operating system. torch's generator is
not secret: on the CPU it keeps only 32 bits of its seed, few enough to try them all, and it is not
a cryptographic generator.
"""

import secrets
from hashlib import sha256
from typing import Self

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from torch import Tensor

BLOCK_SIZE = 1 << 16  # numbers; a block fits into the processor's cache


class SecretRandom:
    """A stream of random numbers from a 32-byte `key`, which no other stream may use.

    Without a key, the operating system draws a fresh one.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._stream = Cipher(AES256(key or secrets.token_bytes(32)), CTR(bytes(16))).encryptor()

    @classmethod
    def from_seed(cls, *seed: int | str) -> Self:
        """Return a stream that depends on `seed` alone: its noise protects nothing."""
        return cls(sha256(repr(seed).encode()).digest())

    def uniform(self, count: int) -> Tensor:
        """Return `count` uniform numbers in [0, 1), multiples of 2⁻⁵³, (count,) float64."""
        drawn = np.frombuffer(self._stream.update(bytes(8 * count)), dtype=np.uint64)
        return torch.from_numpy((drawn >> np.uint64(11)).astype(np.float64)).mul_(2.0**-53)

    def normal(self, count: int) -> Tensor:
        """Return `count` independent standard normal numbers, (count,) float64."""
        values = torch.zeros(count, dtype=torch.float64)
        self.add_normal(values, 1.0)
        return values

    def add_normal(self, values: Tensor, deviation: float) -> None:
        """Add independent normal noise of standard deviation `deviation` to a 1-d tensor, in place.

        The noise is √(−2 ln u) · (cos 2πv, sin 2πv) (Box and Muller, 1958), computed in the
        precision of `values`. Since u is a multiple of 2⁻⁶³, the noise reaches 9.4 deviations.
        """
        for part in torch.split(values, BLOCK_SIZE):
            half = (len(part) + 1) // 2
            drawn = bytearray(self._stream.update(bytes(16 * half)))
            whole = torch.frombuffer(drawn, dtype=torch.int64)
            u, v = torch.split(whole.to(values.dtype).abs_().mul_(2.0**-63), half)
            radius = u.clamp_(min=2.0**-64).log_().mul_(-2.0).sqrt_().mul_(deviation)
            angle = v.mul_(2 * torch.pi)
            noise = torch.cat((angle.cos().mul_(radius), angle.sin_().mul_(radius)))
            part.add_(noise[: len(part)])
