"""Image files of every kind: their pixels by Pillow and by hand, and what is refused."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kd_cli.data import pictures
from kd_cli.data.pictures import DEEP, FRAMES, TRANSPARENT, Unreadable, is_picture, read

# Four plain quarters: red, green, blue and white, at full and at half brightness.
COLOURS = np.array(
    [[[250, 10, 10], [10, 250, 10]], [[10, 10, 250], [240, 240, 240]]], dtype=np.uint8
)
PIXELS = COLOURS.repeat(8, axis=0).repeat(16, axis=1)  # [16, 32, 3], whole blocks of a JPEG
COLOUR = Image.fromarray(PIXELS)
GREY = COLOUR.convert("L")


def saved(folder: Path, image: Image.Image, kind: str, **keywords) -> Path:
    """A file whose name says nothing."""
    path = folder / "image"
    image.save(path, kind, **keywords)
    return path


def pixels(path: Path, channels: int = 3) -> np.ndarray:
    image, _ = read(path, channels)
    assert image.dtype == np.uint8 and image.shape[-1] == channels
    return image


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP", "AVIF", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "P", "L", "1"])
def test_every_kind_in_colour_and_in_grey(tmp_path, kind, mode):
    if (mode, kind) in (("P", "JPEG"), ("P", "PPM"), ("1", "JPEG")):
        return  # these have no palette; dots are no case for a JPEG
    image = COLOUR.quantize(4) if mode == "P" else COLOUR.convert(mode)
    lossy = {"quality": 100, "subsampling": "4:4:4"} if kind in ("AVIF", "JPEG") else {}
    path = saved(tmp_path, image, kind, **lossy, **({"lossless": True} if kind == "WEBP" else {}))
    off = 3 if lossy else 1 if kind == "WEBP" else 0
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(pixels(path) - expected).max() <= off
    grey = expected @ [0.299, 0.587, 0.114]  # ITU-R BT.601
    assert np.abs(pixels(path, 1)[..., 0] - grey).max() <= off + 1
    assert (pixels(path, 4)[..., 3] == 255).all()
    assert read(path, 3)[1] == set()


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_four_inks_become_colours(tmp_path, kind):
    lossless = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    path = saved(tmp_path, COLOUR.convert("CMYK"), kind, **lossless)
    assert np.abs(pixels(path) - PIXELS.astype(int)).max() <= 3
    assert np.abs(pixels(path, 1)[..., 0] - np.asarray(GREY).astype(int)).max() <= 3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_plain_jpeg_and_png_are_decoded_by_tensorflow_bit_for_bit(tmp_path, subsampling, channels):
    noise = np.random.default_rng(0).integers(0, 256, (9, 13, 3)).astype(np.uint8)
    image = Image.fromarray(noise).resize((41, 37))
    for one in (image, image.convert("L")):
        keywords = {"quality": 80} | ({"subsampling": subsampling} if one is image else {})
        for path in (saved(tmp_path, one, "JPEG", **keywords), saved(tmp_path, one, "PNG")):
            expected = tf.io.decode_image(path.read_bytes(), channels)
            np.testing.assert_array_equal(pixels(path, channels), expected)


# What viewers show of a stored image, by EXIF 2.3's table: where its first row and column are.
TURNED = {
    2: PIXELS[:, ::-1],
    3: PIXELS[::-1, ::-1],
    4: PIXELS[::-1],
    5: PIXELS.swapaxes(0, 1),
    6: PIXELS.swapaxes(0, 1)[:, ::-1],
    7: PIXELS.swapaxes(0, 1)[::-1, ::-1],
    8: PIXELS.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("orientation", [1, *TURNED, 9])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_images_are_turned_as_viewers_show_them(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    path = saved(tmp_path, COLOUR, kind, exif=exif, **lossless.get(kind, {}))
    expected = TURNED.get(orientation, PIXELS)
    image = pixels(path)
    assert image.shape == expected.shape
    assert np.abs(image - expected.astype(int)).max() <= 3
    grey = pixels(path, 1)
    assert grey.shape[:2] == expected.shape[:2]


def test_of_several_frames_the_first_is_read_and_told(tmp_path):
    later = Image.fromarray(255 - PIXELS)
    for kind in ("GIF", "TIFF", "PNG", "WEBP"):
        lossless = {"lossless": True} if kind == "WEBP" else {}
        path = saved(tmp_path, COLOUR, kind, save_all=True, append_images=[later], **lossless)
        image, remarks = read(path, 3)
        assert np.abs(image - PIXELS.astype(int)).max() <= 1, kind
        assert remarks == {FRAMES}, kind


def test_transparency_is_told_where_it_hides_something(tmp_path):
    image = COLOUR.copy()
    image.putalpha(255)
    assert read(saved(tmp_path, image, "PNG"), 3)[1] == set()
    image.putpixel((0, 0), (250, 10, 10, 7))
    for kind in ("PNG", "TIFF"):
        path = saved(tmp_path, image, kind)
        colours, remarks = read(path, 3)
        np.testing.assert_array_equal(colours, PIXELS)
        assert remarks == {TRANSPARENT}
        whole, remarks = read(path, 4)
        assert whole[0, 0].tolist() == [250, 10, 10, 7] and remarks == set()


def test_a_palette_with_transparency_keeps_its_colours(tmp_path):
    path = saved(tmp_path, COLOUR.quantize(4), "PNG", transparency=0)
    colours, remarks = read(path, 3)
    np.testing.assert_array_equal(colours, PIXELS)
    assert remarks == {TRANSPARENT}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_of_16_bits_the_upper_8_are_read_and_told(tmp_path, kind):
    values = np.array([[0, 255, 256], [4095, 32768, 65535]], dtype=np.uint16)
    image, remarks = read(saved(tmp_path, Image.fromarray(values), kind), 1)
    assert image[..., 0].tolist() == [[0, 0, 1], [15, 128, 255]]
    assert remarks == {DEEP}


def test_colour_of_16_bits(tmp_path):
    values = np.array([[[4095, 32768, 65535]]], dtype=np.uint16)
    path = tmp_path / "deep.png"
    path.write_bytes(tf.io.encode_png(values).numpy())
    image, remarks = read(path, 3)
    assert image.tolist() == [[[15, 128, 255]]] and remarks == {DEEP}


def test_colour_of_16_bits_that_pillow_halves_is_told(tmp_path):
    path = tmp_path / "deep.ppm"
    path.write_bytes(b"P6 # a comment\n1 1\n65535\n" + bytes([15, 15, 128, 128, 255, 255]))
    image, remarks = read(path, 3)
    assert image.tolist() == [[[15, 128, 255]]] and remarks == {DEEP}
    path.write_bytes(b"P6 1 1 255\n" + bytes([15, 128, 255]))
    image, remarks = read(path, 3)
    assert image.tolist() == [[[15, 128, 255]]] and remarks == set()


def test_a_deep_tiff_whose_0_is_white_is_turned(tmp_path):
    values = np.array([[0, 4095, 65535]], dtype=np.uint16)
    path = tmp_path / "white.tif"
    Image.fromarray(values).save(path, tiffinfo={262: 0})
    image, remarks = read(path, 1)
    assert image[..., 0].tolist() == [[255, 240, 0]] and remarks == {DEEP}


def test_32_bits_of_0_and_1_are_refused(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.eye(2, dtype=np.float32)), "TIFF")
    with pytest.raises(Unreadable, match="has 32-bit pixels from 0 to 1; expected whole"):
        read(path, 1)


def test_32_bits_are_read_where_they_are_0_to_255(tmp_path):
    values = np.array([[0, 7], [100, 255]])
    for dtype in (np.int32, np.float32):
        path = saved(tmp_path, Image.fromarray(values.astype(dtype)), "TIFF")
        np.testing.assert_array_equal(pixels(path, 1)[..., 0], values)
        path = saved(tmp_path, Image.fromarray((values - 8).astype(dtype)), "TIFF")
        with pytest.raises(Unreadable, match="has 32-bit pixels from -8 to 247; expected whole"):
            read(path, 1)


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises a size, with a single row of data."""

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1 + 3 * width))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*parts) for parts in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    )


@pytest.mark.parametrize("size", [(100_000, 100_000), (10_000, 9_000)])
def test_an_image_too_large_to_unpack_is_refused_by_its_header(tmp_path, monkeypatch, size):
    def unpack(*_):
        raise AssertionError("unpacked")

    monkeypatch.setattr(pictures, "_by_tensorflow", unpack)
    monkeypatch.setattr(Image.Image, "load", unpack)
    (tmp_path / "bomb.png").write_bytes(png_of(*size))
    with pytest.raises(Unreadable, match="would unpack to more than 89,478,485 pixels"):
        read(tmp_path / "bomb.png", 3)
    assert is_picture(tmp_path / "bomb.png")


def test_a_file_too_large_to_read_is_refused(tmp_path):
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(2**31)  # a hole, which takes no space
    with pytest.raises(Unreadable, match="is too large: 2,147,483,648 bytes"):
        read(tmp_path / "huge.png", 3)


def test_what_is_no_image(tmp_path):
    eps = io.BytesIO()
    COLOUR.save(eps, "EPS")  # Pillow would start Ghostscript
    for content in (b"", b"no image", b"\x89PNG\r\n\x1a\n", b"GIF89a", eps.getvalue()):
        (tmp_path / "file.png").write_bytes(content)
        with pytest.raises(Unreadable, match="^can't be decoded as an image$"):
            read(tmp_path / "file.png", 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000"])
def test_files_cut_short_are_refused(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(Unreadable):
        read(path, 3)


def test_what_is_an_image_by_its_header(tmp_path):
    (tmp_path / "notes.txt").write_text("P is for picture")
    assert not is_picture(tmp_path / "notes.txt")
    COLOUR.save(tmp_path / "image", "WEBP")
    assert is_picture(tmp_path / "image")
    COLOUR.save(tmp_path / "camera.dng", "TIFF")  # the thumbnail of a raw image
    assert not is_picture(tmp_path / "camera.dng")
