"""Damage files as disks, networks, editors and attackers do, from a seed."""

from collections.abc import Callable

import numpy as np

# What sizes, offsets and counts are when something goes wrong
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
Rng = np.random.Generator


def mutate(data: bytes, rng: Rng) -> bytes:
    """Return data with one to four faults, half of them near the front, where headers are."""
    for _ in range(rng.integers(1, 4, endpoint=True)):
        fault = FAULTS[rng.integers(len(FAULTS))]
        data = fault(data, rng)
    return data


def flip_bit(data: bytes, rng: Rng) -> bytes:
    """Flip one bit."""
    if not data:
        return data
    place = draw_place(data, rng)
    return data[:place] + bytes([data[place] ^ 1 << rng.integers(8)]) + data[place + 1 :]


def overwrite_number(data: bytes, rng: Rng) -> bytes:
    """Put an extreme number of one, two or four bytes in place of what is there."""
    place, size = draw_place(data, rng), int(rng.choice((1, 2, 4)))
    value = EXTREMES[rng.integers(len(EXTREMES))] % 256**size
    number = value.to_bytes(size, "big" if rng.random() < 0.5 else "little")
    return data[:place] + number + data[place + size :]


def overwrite(data: bytes, rng: Rng) -> bytes:
    """Put zeros, as for a lost block of a disk, or noise in place of what is there."""
    start, end = draw_stretch(data, rng)
    size = end - start
    return data[:start] + (bytes(size) if rng.random() < 0.5 else rng.bytes(size)) + data[end:]


def cut_short(data: bytes, rng: Rng) -> bytes:
    """Leave out the end."""
    return data[: draw_place(data, rng)]


def leave_out(data: bytes, rng: Rng) -> bytes:
    """Leave out a stretch."""
    start, end = draw_stretch(data, rng)
    return data[:start] + data[end:]


def repeat(data: bytes, rng: Rng) -> bytes:
    """Put a stretch in a second time, after itself or elsewhere."""
    start, end = draw_stretch(data, rng)
    place = end if rng.random() < 0.5 else draw_place(data, rng)
    return data[:place] + data[start:end] + data[place:]


FAULTS: tuple[Callable[[bytes, Rng], bytes], ...] = (
    *(flip_bit, flip_bit, overwrite_number, overwrite_number),
    *(overwrite, cut_short, leave_out, repeat),
)


def draw_place(data: bytes, rng: Rng) -> int:
    """Draw a place anywhere, or near the front: 0 for what is empty."""
    size = len(data) if rng.random() < 0.5 else min(len(data), 256)
    return int(rng.integers(max(size, 1)))


def draw_stretch(data: bytes, rng: Rng) -> tuple[int, int]:
    """Draw where a stretch starts and ends, mostly short, of up to a quarter of all."""
    start = draw_place(data, rng)
    longest = max(len(data) // 4, 1)
    return start, min(start + round(longest ** rng.random()), len(data))
