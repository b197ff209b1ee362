"""Turn an encoded image into an array of bytes."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..extras import require


def decode(source: bytes | Path, *, channels: int = 3, size: int | None = None, label: str = "") -> NDArray[np.uint8]:
    """Decode one image.

    Args:
        source: the encoded bytes, or the file that holds them.
        channels: 3 for colour, 1 for grey.
        size: height and width to bring it to: the shorter side is scaled, the longer one cropped around its
            middle; None for the size it has.
        label: names the image in an error; the file name if empty.

    Returns:
        (channels, height, width).

    Raises:
        DataError: it cannot be decoded.
        MissingExtra: Pillow is not installed.
    """
    pillow = require("PIL.Image", extra="train", purpose="reading images")
    try:
        with pillow.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            mode = "RGB" if channels == 3 else "L"
            if image.mode != mode:
                image = image.convert(mode)
            if size is not None and image.size != (size, size):
                fit = require("PIL.ImageOps", extra="train", purpose="resizing images").fit
                image = fit(image, (size, size), method=pillow.Resampling.BILINEAR)
            pixels: NDArray[np.uint8] = np.asarray(image)
    except (OSError, SyntaxError, ValueError, struct.error, pillow.DecompressionBombError) as error:
        where = label or str(source)
        raise DataError(f"{where} is no readable image ({error}); repair or remove it.") from error
    return pixels.reshape(*pixels.shape[:2], channels).transpose(2, 0, 1)
