"""Every odd or damaged kind of picture is decoded as documented, or refused with its path and a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ditkit.data import Folder
from ditkit.data.pictures import decode, shape_of
from ditkit.protocols import BadImage


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(width=16, height=12):
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("cut", [20, 200, 400])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_truncated(form, cut):
    data = encoded(noise(), form)
    with pytest.raises(BadImage) as caught:
        decode(data[: min(cut, len(data) * 2 // 3)], "a/b.png")
    assert caught.value.path == "a/b.png"
    assert "\n" not in str(caught.value) and "0x" not in caught.value.reason


def test_empty_and_foreign():
    with pytest.raises(BadImage, match="0 bytes"):
        decode(b"", "x.png")
    with pytest.raises(BadImage, match="known format"):
        decode(b"<html>404 not found</html>", "x.jpg")


def test_damaged_inside():
    data = bytearray(encoded(noise(64, 64)))
    data[200:260] = bytes(60)
    with pytest.raises(BadImage, match="cannot be decoded"):
        decode(bytes(data), "x.png")


def test_cmyk_becomes_rgb():
    image = decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"), "x.tif")
    assert image.mode == "RGB" and image.getpixel((0, 0)) == (255, 0, 0)


def test_transparency_is_white():
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 255))
    clear.putpixel((1, 1), (0, 0, 255, 0))
    image = decode(encoded(clear), "x.png")
    assert image.mode == "RGB"
    assert image.getpixel((1, 1)) == (255, 255, 255) and image.getpixel((0, 0)) == (200, 0, 0)


def test_half_transparency_is_mixed_with_white():
    image = decode(encoded(Image.new("LA", (4, 4), (0, 128))), "x.png")
    assert image.mode == "RGB" and abs(image.getpixel((0, 0))[0] - 127) <= 1


def test_palette_with_transparency():
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 90, 80, 70])
    palette.putpixel((2, 2), 1)
    image = decode(encoded(palette, transparency=0), "x.png")
    assert image.mode == "RGB"
    assert image.getpixel((0, 0)) == (255, 255, 255) and image.getpixel((2, 2)) == (90, 80, 70)


def test_sixteen_bits():
    grey = Image.fromarray(np.array([[0, 257 * 77, 65535]], dtype=np.uint16))
    for form in ("PNG", "TIFF"):
        image = decode(encoded(grey, form), "x")
        assert image.mode == "L" and np.asarray(image).tolist() == [[0, 77, 255]]


def sixteen_bit_rgb(value):
    """A 1x1 PNG of 16 bits a channel, which Pillow cannot write."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    body = b"\0" + struct.pack(">HHH", *value)
    head = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def test_sixteen_bit_rgb():
    assert decode(sixteen_bit_rgb((0xFFFF, 0x8080, 0)), "x").getpixel((0, 0)) == (255, 128, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_white_level_are_refused(dtype):
    with pytest.raises(BadImage, match="white"):
        decode(encoded(Image.fromarray(np.ones((4, 4), dtype)), "TIFF"), "x.tif")


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_first_frame_of_an_animation(form):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert decode(data, "x").getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation, tmp_path):
    image = Image.new("RGB", (16, 8), "black")
    image.paste((255, 0, 0), (0, 0, 8, 4))  # red upper left quarter of the stored picture
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "x.jpg"
    image.save(path, quality=95, exif=exif)
    upright = decode(path.read_bytes(), str(path))
    assert (upright.height, upright.width) == shape_of(path, str(path)) == ((16, 8) if orientation > 4 else (8, 16))
    corners = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}  # EXIF 2.3
    right, low = corners[orientation]
    at = (upright.width - 2 if right else 1, upright.height - 2 if low else 1)
    opposite = (upright.width - 1 - at[0], upright.height - 1 - at[1])
    assert upright.getpixel(at)[0] > 200 and upright.getpixel(opposite)[0] < 60


def test_one_pixel_and_bilevel():
    assert decode(encoded(Image.new("RGB", (1, 1), "red")), "x").size == (1, 1)
    image = decode(encoded(Image.new("1", (3, 3), 1)), "x")
    assert image.mode == "L" and image.getpixel((1, 1)) == 255


def test_wrong_ending_does_not_matter(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(noise(), "PNG"))
    assert torch.equal(Folder(tmp_path, (12, 16))[0].image.permute(1, 2, 0), torch.from_numpy(np.array(noise())))


@pytest.mark.parametrize(
    "form,ending",
    [
        ("JPEG", "jpeg"),
        ("WEBP", "webp"),
        ("BMP", "BMP"),
        ("GIF", "Gif"),
        ("TIFF", "tif"),
        ("TIFF", "TIFF"),
        ("PNG", "png"),
        ("JPEG", "JPG"),
    ],
)
def test_endings(form, ending, tmp_path):
    (tmp_path / f"a.{ending}").write_bytes(encoded(noise(), form))
    assert Folder(tmp_path, 8)[0].image.shape == (3, 8, 8)


def test_vanished_file(tmp_path, save):
    source = Folder(save(tmp_path / "a.png").parent, 8)
    (tmp_path / "a.png").unlink()
    with pytest.raises(BadImage, match=r"a\.png: cannot be read: No such file"):
        source[0]


def test_strip_is_refused_with_its_path(tmp_path):
    Image.new("RGB", (1, 5000)).save(tmp_path / "strip.png")
    with pytest.raises(BadImage, match=r"strip\.png: too elongated"):
        Folder(tmp_path, 256)[0]
