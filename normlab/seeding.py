"""Seeds that are functions of several numbers."""

import hashlib


def mix_seed(*numbers: int) -> int:
    """63 bits that depend on all the numbers; neighbours in any of them have nothing in common."""
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
