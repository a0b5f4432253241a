import io
import warnings
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cnn2gnn_jax.data import images


def encoded(image: np.ndarray | Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, file_format, **options)
    return out.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip_is_exact(channels):
    image = noise(9, 7, channels)
    np.testing.assert_array_equal(images.decode(images.encode_png(image), "x", channels), image)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_any_8_bit_image_is_converted_to_rgb_or_gray(mode):
    image = Image.fromarray(noise(8, 8, 3)).convert(mode)
    data = encoded(image, "JPEG" if mode == "CMYK" else "PNG")
    assert images.decode(data, "x").shape == (8, 8, 3)
    assert images.decode(data, "x", channels=1).shape == (8, 8, 1)


def on_white(rgb, alpha):
    return rgb * (alpha / 255) + 255 * (1 - alpha / 255)


def test_gray_is_repeated_and_transparency_becomes_white():
    grey = noise(4, 4)
    np.testing.assert_array_equal(images.decode(encoded(grey), "x"), np.stack([grey] * 3, -1))
    rgba = noise(4, 4, 4)
    np.testing.assert_allclose(images.decode(encoded(rgba), "x"), on_white(rgba[..., :3], rgba[..., 3:]), atol=1)
    grey_and_alpha = noise(4, 4, 2)
    decoded = images.decode(encoded(Image.fromarray(grey_and_alpha, "LA")), "x", channels=1)
    np.testing.assert_allclose(decoded, on_white(grey_and_alpha[..., :1], grey_and_alpha[..., 1:]), atol=1)


def test_transparency_of_a_palette_becomes_white():
    palette = Image.fromarray(noise(4, 4)).convert("P")
    alpha = np.arange(256)[np.asarray(palette)][..., None]
    data = encoded(palette, transparency=bytes(range(0, 256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = images.decode(data, "x")
    np.testing.assert_allclose(decoded, on_white(np.asarray(palette.convert("RGB")), alpha), atol=1)


def test_sixteen_bits_keep_the_upper_eight():
    deep = np.random.default_rng(0).integers(0, 1 << 16, (5, 6), np.uint16)
    np.testing.assert_array_equal(images.decode(encoded(deep), "x", channels=1)[..., 0], deep >> 8)
    np.testing.assert_array_equal(images.decode(encoded(deep), "x")[..., 2], deep >> 8)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [(1, lambda x: x), (3, lambda x: x[::-1, ::-1]), (6, lambda x: np.rot90(x, -1)), (8, np.rot90), (2, np.fliplr)],
)
def test_a_photograph_is_rotated_upright(orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = noise(4, 6, 3)
    np.testing.assert_array_equal(images.decode(encoded(image, exif=exif), "x"), upright(image))


def test_many_images_are_decoded_in_order_and_errors_keep_their_position():
    good = [noise(3, 3 + i, 3) for i in range(5)]
    data = [encoded(image) for image in good]
    data[2] = data[2][:40]
    decoded = images.decode_all(data, [f"{i}.png" for i in range(5)], 3, 0)
    assert str(decoded[2]).startswith("2.png: ")
    for i in (0, 1, 3, 4):
        np.testing.assert_array_equal(decoded[i], good[i])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no JPEG, PNG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "x"),
        (encoded(noise(30, 30, 3))[:-200], "damaged"),
        (encoded(noise(30, 30, 3), "JPEG")[:-200], "damaged"),
        (encoded(Image.new("RGB", (4, 4)), "TIFF"), "no JPEG, PNG"),
        (encoded(Image.new("1", (10_000, 6_000))), "10000x6000 pixels, more than 50,000,000"),
        (encoded(Image.new("1", (20_000, 10_000))), "damaged or too large"),
    ],
)
def test_files_that_cannot_be_used_are_named(data, message):
    with pytest.raises(images.ImageError, match=message) as raised:
        images.decode(data, "folder/x.png")
    assert str(raised.value).startswith("folder/x.png: ") and "\n" not in str(raised.value)
    assert "BytesIO" not in str(raised.value)


def test_resizing_averages_pixels():
    checkers = np.indices((64, 64)).sum(0)[..., None].astype(np.uint8) % 2 * 255
    small = images.resize(checkers, 16)
    assert small.shape == (16, 16, 1) and abs(small[2:-2, 2:-2].astype(float) - 127.5).max() < 3


def test_resizing_crops_the_center_square():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = (50, 100, 150)
    np.testing.assert_array_equal(images.resize(wide, 10), wide[:, 10:20])
    tall = wide.transpose(1, 0, 2)
    np.testing.assert_array_equal(images.resize(tall, 10), tall[10:20])
    np.testing.assert_array_equal(images.decode(encoded(wide), "x", size=10), wide[:, 10:20])


def test_an_image_of_the_right_size_is_not_changed():
    image = noise(12, 12, 3)
    np.testing.assert_array_equal(images.resize(image, 12), image)
