"""One image file becomes pixels: what it is follows from its content, never from its name.

Pillow reads the header first: format, size and orientation, before anything is unpacked. TensorFlow
then decodes PNG and plain JPEG, and Pillow the rest. (The two decode a JPEG differently, by up to 6
of 255, and TensorFlow gave the published numbers.)
"""

from __future__ import annotations

import functools
import io
import logging
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from kd_cli.device import import_tensorflow

# Formats that Pillow reads by itself; its EPS, for one, starts Ghostscript. (MPO counts as JPEG.)
_FORMATS = frozenset("JPEG PNG GIF BMP DIB WEBP TIFF AVIF PPM JPEG2000".split())
# Names that promise an image: if such a file can't be decoded, that is a fault.
SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .gif .bmp .dib .webp .tif .tiff .avif .ppm .pgm .pbm .jp2".split()
)
# Cameras' raw files begin as a TIFF, whose image is a thumbnail.
RAW = frozenset(".dng .nef .nrw .cr2 .arw .orf .pef .rw2 .srw .3fr .iiq".split())
# Pillow warns from here on: 256 MiB in colour, and 1 GiB while it is resized.
MOST_PIXELS = 89_478_485
MOST_BYTES = 2**30
_ORIENTATION = 0x0112  # the EXIF tag
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # of TIFF

# What is lost of an image that is read, for a notice.
FRAMES = "only the first of several frames is used"
TRANSPARENT = "transparency is ignored"
DEEP = "the upper 8 of 16 bits are used"

logging.getLogger("PIL").setLevel(logging.INFO)  # it logs each chunk of each PNG


class Unreadable(Exception):
    """Why a file gives no pixels: the end of a sentence that begins with the file."""


@functools.cache
def _formats() -> list[str]:
    Image.init()
    return sorted(_FORMATS & set(Image.OPEN))  # a Pillow may be built without one of them


def is_picture(file: Path) -> bool:
    """Whether a regular file is an image of a known format, by its header."""
    if file.suffix.lower() in RAW:
        return False
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=_formats()):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # whatever a decoder raises on bytes that are no image
        return False


def read(file: Path, channels: int) -> tuple[np.ndarray, set[str]]:
    """The pixels of an image file, turned as its EXIF orientation says.

    Args:
        file: A regular file.
        channels: 1 for grey, 3 for colour, 4 for colour and opacity.

    Returns:
        Pixels [H, W, channels], uint8, and which of FRAMES, TRANSPARENT and DEEP hold.

    Raises:
        Unreadable: The file is no image, is cut short, or is too large to be unpacked.
    """
    try:
        size = file.stat().st_size
        if size > MOST_BYTES:
            raise Unreadable(f"is too large: {size:,} bytes, at most {MOST_BYTES:,} are read")
        data = file.read_bytes()
        with warnings.catch_warnings(action="ignore"):
            with Image.open(io.BytesIO(data), formats=_formats()) as image:
                return _decoded(image, data, channels)
    except Unreadable:
        raise
    except Image.DecompressionBombError as error:
        raise _too_many_pixels() from error
    except OSError as error:
        if error.errno:
            raise Unreadable(f"can't be read ({error.strerror})") from error
        raise Unreadable("can't be decoded as an image") from error
    except Exception as error:  # decoders raise anything on bytes that are no image
        raise Unreadable("can't be decoded as an image") from error


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixels [height, width, C], uint8, of an image [H, W, C] of any size."""
    if image.shape[:2] == (height, width):
        return image
    tf = import_tensorflow()
    image = tf.round(tf.image.resize(image, (height, width), antialias=True))
    return tf.cast(image, tf.uint8).numpy()


def _too_many_pixels(size: str = "") -> Unreadable:
    return Unreadable(
        f"would unpack to more than {MOST_PIXELS:,} pixels{size}; it can't be decoded safely"
    )


def _decoded(image: Image.Image, data: bytes, channels: int) -> tuple[np.ndarray, set[str]]:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise _too_many_pixels(f" ({width:,} x {height:,})")
    remarks = set()
    if image.format != "MPO" and getattr(image, "is_animated", False):
        image.seek(0)
        remarks.add(FRAMES)
    if _is_deep(image) or 8 < _depth(image, data) <= 16:
        remarks.add(DEEP)
    plain_jpeg = image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")
    if not plain_jpeg and channels < 4 and _is_transparent(image):
        remarks.add(TRANSPARENT)
    # TensorFlow gives a PNG with a palette a wrong opacity.
    if plain_jpeg or (image.format == "PNG" and channels < 4):
        pixels = _by_tensorflow(data, channels)
    else:
        pixels = _by_pillow(image, channels)
    return _turned(pixels, _orientation(image, data)), remarks


def _is_deep(image: Image.Image) -> bool:
    """Whether a grey image has the values 0..65535; to those Pillow brings any deep PGM."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")


def _depth(image: Image.Image, data: bytes) -> int:
    """Bits per channel that the file says it has, where Pillow halves them in silence; else 8."""
    if image.format == "PNG":
        return data[24]
    if image.format == "TIFF":
        return max(image.tag_v2.get(_BITS_PER_SAMPLE, (8,)))
    if image.format == "PPM" and image.mode == "RGB":
        words = re.sub(rb"#[^\n]*", b"", data[:1000]).split(maxsplit=4)
        return int(words[3]).bit_length()  # after P6, width and height: the largest value
    return 8


def _is_transparent(image: Image.Image) -> bool:
    if image.mode.startswith(("I", "F")):
        return False
    if image.mode not in ("LA", "PA", "RGBA", "La", "RGBa") and "transparency" not in image.info:
        return False
    return image.convert("RGBA").getchannel("A").getextrema()[0] < 255


def _by_tensorflow(data: bytes, channels: int) -> np.ndarray:
    tf = import_tensorflow()
    pixels = tf.io.decode_image(data, min(channels, 3), expand_animations=False).numpy()
    if channels == 4:  # nothing in a JPEG is transparent
        return np.concatenate([pixels, np.full_like(pixels[..., :1], 255)], -1)
    return pixels


def _orientation(image: Image.Image, data: bytes) -> int:
    """EXIF's number of the turn, 1 where there is none."""
    # Without this Pillow would decode the whole PNG in search of it.
    if image.format == "PNG" and b"eXIf" not in data and b"Raw profile type exif" not in data:
        return 1
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF leaves the image as it is
        return 1


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation not in range(2, 9):
        return pixels
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.getexif()[_ORIENTATION] = orientation
    turned = np.asarray(ImageOps.exif_transpose(image))
    return turned.reshape(*turned.shape[:2], -1)


def _by_pillow(image: Image.Image, channels: int) -> np.ndarray:
    image.load()  # Pillow turns a TIFF here, and forgets its orientation
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_eight_bits(image))
    elif image.mode in ("La", "RGBa", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode not in ("1", "L", "RGBA"):
        image = image.convert("RGB")
    pixels = np.asarray(image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)


def _eight_bits(image: Image.Image) -> np.ndarray:
    """Pixels [H, W] of a grey image with more than 8 bits."""
    values = np.asarray(image)
    if _is_deep(image):
        # Pillow turns a TIFF whose 0 is white only where it has 8 bits.
        white = image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0
        return ((65535 - values if white else values) >> 8).astype(np.uint8)
    kept = values.astype(np.uint8)
    # (In floating point 0 and 1 may be black and white.)
    if not np.array_equal(kept, values) or (image.mode == "F" and values.max() == 1):
        raise Unreadable(
            f"has 32-bit pixels from {values.min():g} to {values.max():g}; expected whole numbers "
            "from 0 to 255"
        )
    return kept
