"""Where inputs come from, where there is no coverage-guided fuzzer: a seeded mutator."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_BYTES: Final = 48
_KEPT: Final = 1000
_MOST_CHANGES: Final = 4
_GOOD_MESSAGES: Final = 64  # the values of a byte that stand for one


def random_inputs(seed: int) -> Iterator[bytes]:
    """Inputs without end: new ones, and mutations of earlier ones.

    Args:
        seed: the same gives the same ones.
    """
    rng = random.Random(seed)
    kept = [b""]
    while True:
        data = _new(rng) if rng.random() < 0.3 else _changed(rng, rng.choice(kept))
        if len(kept) < _KEPT:
            kept.append(data)
        else:
            kept[rng.randrange(_KEPT)] = data
        yield data


def _new(rng: random.Random) -> bytes:
    size_bytes = rng.randrange(30)
    most = [256 if rng.random() < 0.3 else _GOOD_MESSAGES for _ in range(size_bytes)]
    return bytes([rng.randrange(256), *(rng.randrange(each) for each in most)])


def _changed(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randrange(1, _MOST_CHANGES + 1)):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            changed[at : at + 1] = rng.randbytes(1)
        elif kind == 1:
            changed[at:at] = bytes([rng.randrange(_GOOD_MESSAGES)])
        elif kind == 2:
            del changed[at : at + rng.randrange(1, 8)]
        else:
            changed[at:at] = changed[: rng.randrange(1, 16)]
    return bytes(changed[:MOST_BYTES])
