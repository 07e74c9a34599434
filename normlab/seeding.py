"""Seeds that are functions of several numbers, and random numbers at any place of a stream.

uniforms(hashed(seed, epoch, indices_B), 3, 4)         (B, 4): four numbers of stream 3 of each sample
"""

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

Bits = NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio, by which splitmix64's state advances

_STREAM = 2**32  # numbers that a stream has


def mix_seed(*numbers: int) -> int:
    """63 bits that depend on all the numbers; neighbours in any of them have nothing in common."""
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@np.errstate(over="ignore")
def hashed(*numbers: ArrayLike) -> Bits:
    """64 bits for each place of whole numbers that broadcast together, as mix_seed gives for one; much faster."""
    state: Bits = np.zeros((), np.uint64)
    for number in numbers:
        state = _scrambled(state + _GOLDEN + _as_bits(number))
    return state


@np.errstate(over="ignore")
def splitmix64(state: Bits, count: int, start: int = 0) -> Bits:
    """Outputs `start` to `start + count` (..., count) of the generator splitmix64 from each state (...).

    Each is a function of the state and its place alone (Steele, Lea and Flood 2014), so a batch of states gives, bit by
    bit, what each gives by itself.
    """
    places = np.arange(start + 1, start + 1 + count, dtype=np.uint64)
    return _scrambled(state[..., None] + places * _GOLDEN)


def uniforms(key: Bits, stream: int, count: int) -> NDArray[np.float64]:
    """Numbers (..., count) in [0, 1) of a stream of each key (...); streams have nothing in common."""
    return (splitmix64(key, count, stream * _STREAM) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def random_bytes(key: Bits, stream: int, count: int) -> NDArray[np.uint8]:
    """Bytes (..., count), as `uniforms` gives numbers, at a fraction of the cost."""
    words = splitmix64(key, -(-count // 8), stream * _STREAM).astype("<u8", copy=False)
    return words.view(np.uint8)[..., :count]


def _as_bits(number: ArrayLike) -> Bits:
    """Whole numbers modulo 2**64."""
    if isinstance(number, int):
        return np.asarray(number % 2**64, np.uint64)
    return np.asarray(number).astype(np.uint64)


def _scrambled(bits: Bits) -> Bits:
    """splitmix64's finalizer: a permutation of 64 bits in which each bit of the input moves half of the output."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
