"""LZ4 blocks and frames: a decoder of blocks, and encoders that favour odd but legal output."""

from __future__ import annotations

import struct

_MASK = 0xFFFFFFFF
_P1, _P2, _P3, _P4, _P5 = 2654435761, 2246822519, 3266489917, 668265263, 374761393


class LZ4Error(Exception):
    """Say that a block is broken."""


def _length(data: bytes, place: int, nibble: int) -> tuple[int, int]:
    """Read a length that may go on in further bytes; return it and the next place."""
    if nibble < 15:
        return nibble, place
    while True:
        if place >= len(data):
            raise LZ4Error("length cut off")
        nibble += data[place]
        place += 1
        if data[place - 1] != 255:
            return nibble, place


def decompress_block(data: bytes, size: int) -> bytes:
    """Decode a block that must become exactly ``size`` bytes."""
    out = bytearray()
    place = 0
    while place < len(data):
        token = data[place]
        literals, place = _length(data, place + 1, token >> 4)
        if place + literals > len(data):
            raise LZ4Error("literals cut off")
        out += data[place : place + literals]
        place += literals
        if place == len(data):
            break
        if place + 2 > len(data):
            raise LZ4Error("offset cut off")
        offset = data[place] | data[place + 1] << 8
        match, place = _length(data, place + 2, token & 15)
        if offset == 0 or offset > len(out):
            raise LZ4Error("offset outside the block")
        for _ in range(match + 4):
            out.append(out[-offset])
        if len(out) > size:
            raise LZ4Error("too long")
    if len(out) != size:
        raise LZ4Error(f"{len(out)} bytes instead of {size}")
    return bytes(out)


def literal_block(data: bytes) -> bytes:
    """Encode ``data`` as one block of literals only."""
    if len(data) < 15:
        return bytes([len(data) << 4]) + data
    rest = len(data) - 15
    return b"\xf0" + b"\xff" * (rest // 255) + bytes([rest % 255]) + data


def run_block(byte: int, size: int) -> bytes:
    """Encode ``size`` (at least 32) equal bytes as a literal, one match, and five literals."""
    rest = size - 1 - 5 - 4 - 15
    match = b"\xff" * (rest // 255) + bytes([rest % 255])
    return bytes([0x1F, byte, 1, 0]) + match + bytes([0x50]) + bytes([byte]) * 5


def _rotate(value: int, bits: int) -> int:
    return (value << bits | value >> (32 - bits)) & _MASK


def _round(value: int, word: int) -> int:
    return _rotate((value + word * _P2) & _MASK, 13) * _P1 & _MASK


def xxh32(data: bytes) -> int:
    """Return xxHash-32 with seed 0, the checksum of LZ4 frames."""
    place = 0
    value = _P5
    if len(data) >= 16:
        lanes = [(_P1 + _P2) & _MASK, _P2, 0, -_P1 & _MASK]
        while place + 16 <= len(data):
            words = struct.unpack_from("<4I", data, place)
            lanes = [_round(lane, word) for lane, word in zip(lanes, words, strict=True)]
            place += 16
        value = sum(_rotate(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True))
    value = (value + len(data)) & _MASK
    while place + 4 <= len(data):
        (word,) = struct.unpack_from("<I", data, place)
        value = _rotate((value + word * _P3) & _MASK, 17) * _P4 & _MASK
        place += 4
    for byte in data[place:]:
        value = _rotate((value + byte * _P5) & _MASK, 11) * _P1 & _MASK
    value = (value ^ value >> 15) * _P2 & _MASK
    value = (value ^ value >> 13) * _P3 & _MASK
    return value ^ value >> 16


def frame(
    data: bytes,
    *,
    blocks: list[bytes] | None = None,
    stored: bool = True,
    content_size: bool = False,
    block_checksum: bool = False,
) -> bytes:
    """Encode an LZ4 frame with a content checksum, as old LTX files have it.

    ``blocks`` are stored as they are, compressed ones with ``stored=False``.
    """
    flags = 0x64 | (0x08 if content_size else 0) | (0x10 if block_checksum else 0)
    descriptor = bytes([flags, 0x70])
    if content_size:
        descriptor += struct.pack("<Q", len(data))
    out = struct.pack("<I", 0x184D2204) + descriptor + bytes([xxh32(descriptor) >> 8 & 0xFF])
    for block in [data] if blocks is None else blocks:
        out += struct.pack("<I", len(block) | (0x80000000 if stored else 0)) + block
        out += struct.pack("<I", xxh32(block)) if block_checksum else b""
    return out + struct.pack("<II", 0, xxh32(data))
