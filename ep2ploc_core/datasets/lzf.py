"""LZF, the compression of `binary_compressed` PCD files (the format of Marc Lehmann's liblzf)."""

from __future__ import annotations

# A reference of three bytes stands for at most this many, so a stream cannot grow by more than this over three.
LONGEST_REFERENCE = 264


def decompress(stream: bytes, size: int) -> bytes:
    """The `size` bytes that an LZF stream stands for; raises ValueError when it stands for anything else.

    A control byte below 32 is followed by that many bytes plus one, taken as they are. Any other is a reference into
    what is already there: its upper three bits are the length less two (7: one more byte is added to it), its lower
    five and the next byte the distance back less one.
    """
    out = bytearray()
    at, end = 0, len(stream)
    try:
        while at < end and len(out) <= size:
            control = stream[at]
            at += 1
            if control < 32:
                out += stream[at : at + control + 1]
                at += control + 1
                continue
            length = (control >> 5) + 2
            if length == 9:
                length += stream[at]
                at += 1
            start = len(out) - ((control & 31) << 8) - stream[at] - 1
            at += 1
            if start < 0:
                raise ValueError("a reference to before the beginning")
            piece = out[start : start + length]
            while len(piece) < length:  # the reference overlaps what it writes: the bytes repeat
                piece += piece[: length - len(piece)]
            out += piece
    except IndexError as error:
        raise ValueError("the stream ends in the middle") from error
    if len(out) != size or at != end:
        raise ValueError(f"it holds {len(out)} bytes instead of {size}")
    return bytes(out)
