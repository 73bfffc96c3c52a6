"""Initial values of parameters, the same bits on every machine.

Every node makes the frozen parameters itself, and the server refuses a node whose bits differ.
torch's own generators depend on the machine: their kernels compute logarithms and cosines with the
vector unit, which rounds them in its own way. Here a value is an integer times one float32 factor.
IEEE 754 rounds a single multiplication in the same way everywhere, and everything before it is
integer arithmetic.

The integers are made from 64-bit words of the counter-based generator Philox-4x64-10 (Salmon,
Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011), whose words numpy
guarantees never to change. Its key is a hash of the seed and the parameter's name. Therefore a
value depends neither on the order in which parameters are made nor on torch's global generator.
"""

import math
from collections.abc import Callable, Collection
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Integers = npt.NDArray[Any]

UNIFORM_BITS = 24  # a float32 holds every integer of this many bits
COIN_BITS, FRACTION_BITS = 48, 16  # the two parts of the word behind a normal value
WORDS_PER_BLOCK = 2**13  # 64 KiB: beyond 128 KiB, each block costs the system's page faults


def fill_uniform(parameter: Tensor, bound: float, seed: int, name: str) -> None:
    """Fill a float32 tensor with values of U(-bound, bound).

    They are 2²⁴ equally likely values, symmetric about 0 and without 0. `name` is the parameter's
    name: another name or another `seed` gives independent values.
    """
    _fill(parameter, _uniform_integers, bound * 2.0**-UNIFORM_BITS, seed, name)


def fill_normal(parameter: Tensor, std: float, seed: int, name: str) -> None:
    """Fill a float32 tensor with values of mean 0 and standard deviation `std`, close to normal.

    A value is the number of heads in 48 fair coin tosses plus a uniform fraction with 16 bits,
    centred and scaled. The variance is exactly std². The excess kurtosis is -0.041, where a sum of
    12 uniform values, the usual substitute for a normal value, has -0.1. The distribution function
    is within 0.003 of the normal one, and no value is beyond 7.1 std. `name` and `seed` have the
    same effect as in `fill_uniform`.
    """
    # The variance of 2 (coins + fraction) in units of 2⁻¹⁶: binomial, and discrete uniform.
    unit = 2**FRACTION_BITS
    variance = 4 * (unit**2 * COIN_BITS / 4 + (unit**2 - 1) / 12)
    _fill(parameter, _normal_integers, std / math.sqrt(variance), seed, name)


def initialise(model: nn.Module, seed: int, names: Collection[str] | None = None) -> None:
    """Set the parameters of `model`, or only those in `names`, to values that depend on `seed`.

    The distributions are those of torch: for `nn.Linear` with d inputs U(-1/√d, 1/√d), for
    `nn.Embedding` N(0, 1) and 0 for padding, for `nn.LayerNorm` weight 1 and bias 0. Raises
    `TypeError` for a parameter of another module: use `fill_uniform` or `fill_normal` for it.
    """
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if names is None or name in names:
                _set(module, parameter, seed, name)


def initialise_new(model: nn.Module, names: Collection[str], std: float, seed: int) -> None:
    """Set the parameters in `names`, which are not in a pretrained model's weights.

    `model` has been initialised by its own rules. Parameters that these set to 0 or 1, such as
    biases, keep this value. All others are drawn from N(0, std²).
    """
    for name, parameter in model.named_parameters():
        if name in names and not any(bool((parameter == value).all()) for value in (0, 1)):
            fill_normal(parameter, std, seed, name)


@torch.no_grad()
def _set(module: nn.Module, parameter: Tensor, seed: int, name: str) -> None:
    match module:
        case nn.Linear():
            fill_uniform(parameter, 1 / math.sqrt(module.in_features), seed, name)
        case nn.Embedding():
            fill_normal(parameter, 1.0, seed, name)
            if module.padding_idx is not None:
                parameter[module.padding_idx] = 0
        case nn.LayerNorm():
            parameter.fill_(parameter is module.weight)
        case _:
            raise TypeError(f"{name}: no initial values for {type(module).__name__}")


def _fill(
    parameter: Tensor, integers: Callable[[Integers], Integers], factor: float, seed: int, name: str
) -> None:
    """Set each value to the product of `factor` and an integer that `integers` makes of a word."""
    if parameter.is_meta:  # a model that is built for its shapes alone
        return
    digest = sha256(f"{seed}/{name}".encode()).digest()
    words = np.random.Philox(key=int.from_bytes(digest[:16], "big"))
    values = parameter.detach().view(-1)
    for start in range(0, len(values), WORDS_PER_BLOCK):
        block = values[start : start + WORDS_PER_BLOCK]
        exact = integers(words.random_raw(len(block))).astype(np.float32)  # below 2²⁴
        block.copy_(torch.from_numpy(exact * np.float32(factor)))


def _uniform_integers(words: Integers) -> Integers:
    """Return the odd integers between -2²⁴ and 2²⁴, each equally likely."""
    integers: Integers = 2 * (words >> (64 - UNIFORM_BITS)).astype(np.int64) + 1 - 2**UNIFORM_BITS
    return integers


def _normal_integers(words: Integers) -> Integers:
    """Return twice the sum of coins and fraction, centred, in units of 2⁻¹⁶."""
    coins = _set_bits(words >> FRACTION_BITS)
    sums = (coins << FRACTION_BITS) + (words & (2**FRACTION_BITS - 1))
    integers: Integers = 2 * sums.astype(np.int64) + 1 - ((COIN_BITS + 1) << FRACTION_BITS)
    return integers


def _set_bits(words: Integers) -> Integers:
    """Return the number of set bits of each uint64 (`np.bitwise_count` needs numpy 2)."""
    counts = words - ((words >> 1) & 0x5555555555555555)  # of each 2 bits
    counts = (counts & 0x3333333333333333) + ((counts >> 2) & 0x3333333333333333)  # of each 4
    counts = (counts + (counts >> 4)) & 0x0F0F0F0F0F0F0F0F  # of each 8
    totals: Integers = (counts * 0x0101010101010101) >> 56
    return totals
