"""Random numbers as pure functions of a key: the same on every device, in any order, in any batch.

Integers are the same bit for bit. Normal numbers may differ in the rounding of logarithm and cosine.

A counter-based generator: the finaliser of splitmix64 (Steele, Lea and Flood, 2014, "Fast splittable
pseudorandom number generators") on int64 tensors, whose products wrap as two's complement.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import pi, prod
from typing import Any

import numpy as np
import torch


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


GOLDEN = _signed(0x9E3779B97F4A7C15)
MIX_1 = _signed(0xBF58476D1CE4E5B9)
MIX_2 = _signed(0x94D049BB133111EB)
TICKETS_AT_ONCE = 2**22  # random numbers, or values, that a draw of tasks holds at once: they bound its memory


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    # `>>` on int64 copies the sign bit; the hash needs zeros there.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def stream(*words: object) -> int:
    """A 64-bit key for a named stream, such as stream(seed, "test")."""
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return _signed(int.from_bytes(digest[:8], "little"))


def fold_in(key: torch.Tensor | int, counter: torch.Tensor | int) -> torch.Tensor:
    """int64 hash of (key, counter), in the broadcast shape of the two. Successive folds make a tree of streams."""
    if isinstance(counter, int):
        x = key + torch.tensor(_signed((counter + 1) * GOLDEN % (1 << 64)))
    else:
        x = key + (counter + 1) * GOLDEN
    x = (x ^ _shift(x, 30)) * MIX_1
    x = (x ^ _shift(x, 27)) * MIX_2
    return x ^ _shift(x, 31)


def split(key: torch.Tensor, count: int) -> torch.Tensor:
    """The streams 0..count-1 of each key: int64 [...] to [..., count]."""
    counters = _counters if torch.compiler.is_compiling() else _arange
    return fold_in(key[..., None], counters(count, key.device))


def _arange(count: int, device: torch.device) -> torch.Tensor:
    return torch.arange(count, device=device)


# An operator of our own is a closed box to torch.compile, which would otherwise multiply the counter of a C++ loop
# until it overflows: there that is undefined, and g++ (torch 2.15) then writes past the end.
_counters = torch.library.custom_op("fewshot::counters", _arange, mutates_args=())
_counters.register_fake(_arange)


def randint(bits: torch.Tensor, bound: torch.Tensor | int) -> torch.Tensor:
    """Uniform integers in [0, bound) from hash bits; the modulo's bias is under bound / 2^62."""
    return _shift(bits, 2) % bound


def uniform(bits: torch.Tensor) -> torch.Tensor:
    """Uniform float32 in [0, 1), multiples of 2^-24, from hash bits, in their shape."""
    return _shift(bits, 40).to(torch.float32) * 2**-24


class _Words(torch.autograd.Function):
    """int64 [..., n] seen as narrower integers [..., more]: `x.view(dtype)`, which vmap of torch 2.11 cannot batch."""

    @staticmethod
    def forward(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return x.view(dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass  # integers have no gradient

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: Any, in_dims: Any, x: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, int]:
        return _Words.apply(x.movedim(in_dims[0], 0), dtype), 0


def normal(key: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Standard normals of a shape from one key []: Box and Muller's two from each hash, in float32."""
    count = prod(shape)
    words = _Words.apply(split(key, -(-count // 2)), torch.int32)
    # 24 bits each, as float32 holds; the radius must not see a zero.
    unit = ((words & 0xFFFFFF) + 1).to(torch.float32) * 2**-24
    radius, angle = (unit[0::2].log() * -2).sqrt(), unit[1::2] * (2 * pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count].view(*shape)


def bernoulli(key: torch.Tensor, shape: Sequence[int], rate: float) -> torch.Tensor:
    """True with probability `rate` < 1, rounded to a multiple of 1/65536 below 1: bool of a shape from one key []."""
    count = prod(shape)
    lanes = _Words.apply(split(key, -(-count // 4)), torch.int16)  # four of a hash
    return (lanes < min(round(rate * 65536), 65535) - 32768)[:count].view(*shape)  # int16 ends at 32767


def sample_without_replacement(key: torch.Tensor, count: int, bound: int) -> torch.Tensor:
    """`count` distinct integers of [0, bound), in random order: an urn without replacement.

    Args:
        key: [T] int64.

    Returns:
        [T, count] int64. Costs count^2 small operations whatever `bound` is.
    """
    bits = split(key, count)
    drawn: list[torch.Tensor] = []
    for i in range(count):
        ticket = randint(bits[:, i], bound - i)
        # Skip what is already out of the urn: in ascending order, each taken number moves the ticket up by one.
        for taken in torch.stack(drawn).sort(dim=0).values if drawn else ():
            ticket = ticket + (ticket >= taken)
        drawn.append(ticket)
    return torch.stack(drawn, dim=1)


def draw_rows(key: torch.Tensor, sizes: torch.Tensor, count: int, largest: int) -> torch.Tensor:
    """`count` distinct integers below each size, in random order: those with the smallest hashes, in their order.

    Args:
        key: [...] int64.
        sizes: [...] int64, each from `count` to `largest`.

    Returns:
        [..., count] int64. Costs `largest` hashes for each key, of which TICKETS_AT_ONCE are held at once.
    """
    place, drawn = torch.arange(largest, device=key.device), []
    at_once = max(1, TICKETS_AT_ONCE // largest)
    for keys, bounds in zip(key.flatten().split(at_once), sizes.flatten().split(at_once), strict=True):
        tickets = split(keys, largest).masked_fill(place >= bounds[:, None], torch.iinfo(torch.int64).max)
        drawn.append(tickets.topk(count, dim=-1, largest=False, sorted=True).indices)
    return torch.cat(drawn).view(*key.shape, count)


def permutation(key: torch.Tensor, size: int) -> torch.Tensor:
    """A random order of 0..size-1 for each key: [...] int64 to [..., size] int64."""
    return split(key, size).argsort(dim=-1)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block the global generators of torch, NumPy and Python begin at a seed; after it they go on as before.

    A person's networks draw their weights by one of these.
    """
    numpy, python = np.random.get_state(), random.getstate()
    try:
        gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with torch.random.fork_rng(devices=gpus):
            torch.manual_seed(seed)
            np.random.seed(seed % (1 << 32))
            random.seed(seed)
            yield
    finally:
        np.random.set_state(numpy)
        random.setstate(python)
