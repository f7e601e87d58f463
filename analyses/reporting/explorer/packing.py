"""Numbers as compact text that a page can hold: whole numbers of 16 bits, deflated, in base64.

Losses and surprisals are rounded to 1/256 nat, so none is off by more than 1/512 nat (0.002).
The high bytes of all numbers come before their low bytes, which deflates better; a page undoes it
with the browser's own DecompressionStream. Base64 has no "<", so no payload can end its script.

References
----------
.. [1] Deutsch (1996), RFC 1951 (deflate) and RFC 1950 (zlib); Josefsson (2006), RFC 4648 (base64).
"""

import base64
import json
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

GRID = 1 / 256  # nat
MISSING = 65535


def quantised(values: NDArray) -> NDArray[np.uint16]:
    """Nats as multiples of 1/256; MISSING where not finite, above 255.99 the largest multiple."""
    known = np.isfinite(values)
    steps = np.rint(np.where(known, values, 0) / GRID).clip(0, MISSING - 1)
    return np.where(known, steps, MISSING).astype(np.uint16)


def restored(codes: NDArray[np.uint16]) -> NDArray[np.float64]:
    """What `quantised` kept of the values."""
    return np.where(codes == MISSING, np.nan, codes * GRID)


def coded(numbers: NDArray) -> NDArray[np.uint16]:
    """Whole numbers as they are; MISSING where negative.

    Raises
    ------
    ValueError
        If a number is too large.
    """
    if numbers.size and (largest := int(numbers.max())) >= MISSING:
        raise ValueError(
            f"{largest:,} does not fit into the 16 bits of the page; the page can show up to "
            f"{MISSING:,} different tokens and experts: give fewer runs or a smaller probe set"
        )
    return np.where(numbers < 0, MISSING, numbers).astype(np.uint16)


def packed(codes: NDArray[np.uint16]) -> str:
    """An array of 16-bit numbers as text, in C order; `unpacked` undoes it."""
    flat = np.ascontiguousarray(codes, dtype=np.uint16).ravel()
    return packed_bytes((flat >> 8).astype(np.uint8).tobytes() + flat.astype(np.uint8).tobytes())


def unpacked(text: str) -> NDArray[np.uint16]:
    """The flat array that `packed` was given."""
    planes = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)
    high, low = planes.reshape(2, -1).astype(np.uint16)
    return np.asarray(high << 8 | low, dtype=np.uint16)


def packed_bytes(data: bytes) -> str:
    """Bytes as deflated base64."""
    return base64.b64encode(zlib.compress(data, 6)).decode("ascii")


def as_script(value: Any) -> str:
    """A value as JSON that means nothing to HTML: inside a script it can neither end nor open one.

    "<", ">" and "&" are written as escapes, which stand for the same characters in JSON; all that
    is not ASCII as well, so that the page does not depend on its encoding.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
