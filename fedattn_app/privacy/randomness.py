"""Random numbers that nobody else knows: for sampling examples, and for noise.

torch's generator will not do. On the CPU it keeps 32 bits of the seed that it is given, so that
whoever guesses can try them all, and its stream is not made to withstand that either. Here the
stream is AES-256 in counter mode under a key from the operating system.
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

BLOCK = 1 << 16  # numbers at a time, so that they stay in the processor's cache


class SecretRandom:
    """A stream of random numbers under a 32-byte `key`, used once; fresh from the system."""

    def __init__(self, key: bytes | None = None) -> None:
        self._stream = Cipher(AES256(key or secrets.token_bytes(32)), CTR(bytes(16))).encryptor()

    @classmethod
    def known(cls, *seed: int | str) -> Self:
        """Make a stream that depends on `seed` alone, which protects nothing."""
        return cls(sha256(repr(seed).encode()).digest())

    def uniform(self, count: int) -> Tensor:
        """Return `count` numbers in [0, 1), float64, in steps of 2⁻⁵³."""
        drawn = np.frombuffer(self._stream.update(bytes(8 * count)), dtype=np.uint64)
        return torch.from_numpy((drawn >> np.uint64(11)).astype(np.float64)).mul_(2.0**-53)

    def add_normal(self, values: Tensor, deviation: float) -> None:
        """Add independent normal noise of standard `deviation` to a flat tensor, in place.

        Box and Muller, 1958: √(−2 ln u) · (cos 2πv, sin 2πv), in the precision of `values`. With u
        in steps of 2⁻⁶³ the noise reaches 9.4 deviations.
        """
        for part in torch.split(values, BLOCK):
            half = (len(part) + 1) // 2
            drawn = bytearray(self._stream.update(bytes(16 * half)))
            whole = torch.frombuffer(drawn, dtype=torch.int64)
            u, v = torch.split(whole.to(values.dtype).abs_().mul_(2.0**-63), half)
            radius = u.clamp_(min=2.0**-64).log_().mul_(-2.0).sqrt_().mul_(deviation)
            angle = v.mul_(2 * torch.pi)
            noise = torch.cat((angle.cos().mul_(radius), angle.sin_().mul_(radius)))
            part.add_(noise[: len(part)])
