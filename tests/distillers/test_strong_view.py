"""Tests that the image operations of CCD equal those of Pillow, and tests of the strong view that applies them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_digits, load_sample_images

from cnn2gnn_jax import distillers
from cnn2gnn_jax.distillers import image_ops, strong_view
from cnn2gnn_jax.runtime.errors import UserError


@functools.cache
def images():
    """Returns the images of each kind, (n, H, W, C) uint8.

    The kinds are crops of two photographs, the same in gray, both photographs at a size that is not square, noise and
    flat colors, and digits.
    """
    rng = np.random.default_rng(0)
    crops = []
    for array in load_sample_images().images:
        photograph = Image.fromarray(array)
        for side in (32, 50, 90, 200, 400):
            x, y = rng.integers(0, photograph.width - side), rng.integers(0, photograph.height - side)
            crop = photograph.crop((x, y, x + side, y + side))
            crops.append(np.asarray(crop.resize((32, 32), Image.Resampling.BILINEAR)))
    grey = [np.asarray(Image.fromarray(crop).convert("L"))[..., None] for crop in crops]
    wide = [np.asarray(Image.fromarray(array).resize((41, 24))) for array in load_sample_images().images]
    noise = [rng.integers(low, high, (32, 32, 3)) for low, high in ((0, 256), (0, 256), (100, 110), (254, 256))]
    flat = [np.full((32, 32, 3), colour) for colour in (0, 77, 255, (255, 0, 200))]
    digits = load_digits().images[:10, ..., None] / 16 * 255
    kinds = {"photographs": crops, "grey": grey, "wide": wide, "noise": noise + flat, "digits": digits}
    return {kind: np.array(arrays).astype(np.uint8) for kind, arrays in kinds.items()}


KINDS = ("photographs", "grey", "wide", "noise", "digits")


def by_pillow(name, image, value):
    """Applies an operation of Pillow. `value` is its argument, such as a factor, a distance in pixels or an angle."""
    fill, nearest, bicubic = image_ops.FILL, Image.Resampling.NEAREST, Image.Resampling.BICUBIC
    picture = Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])
    coefficients = {
        "translate_x": (1, 0, value, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, value),
        "shear_x": (1, value, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, value, 1, 0),
    }
    if name in coefficients:
        result = picture.transform(
            picture.size,
            Image.Transform.AFFINE,
            coefficients[name],
            bicubic if name.startswith("shear") else nearest,
            fillcolor=fill if picture.mode == "L" else (fill,) * 3,
        )
    elif name == "rotate":
        turned = picture.convert("RGBA").rotate(value)
        result = Image.composite(turned, Image.new("RGBA", turned.size, (fill,) * 4), turned).convert(picture.mode)
    elif name in ("brightness", "contrast", "color", "sharpness"):
        result = getattr(ImageEnhance, name.capitalize())(picture).enhance(value)
    else:
        result = getattr(ImageOps, name)(picture, *([] if value is None else [value]))
    return np.asarray(result).reshape(image.shape)


def by_us(name, batch, values):
    """Applies an operation of CCD with each value. One function is compiled for all values."""
    operation = getattr(image_ops, name)

    @jax.jit
    @jax.vmap
    def run(image):
        return [operation(image) if value is None else operation(image, value) for value in values]

    return run(batch)


# The values of both policies, and some others.
VALUES = {
    "autocontrast": [None],
    "equalize": [None],
    "invert": [None],
    "posterize": [8, 4, 1],
    "solarize": [142, 199, 0, 256],
    "contrast": [0.7, 1.3, 0.3, 1.7],
    "brightness": [0.7, 1.3, 0.4, 1.6],
    "color": [0.6, 1.4, 0.7, 1.3],
    "sharpness": [0.5, 1.5, 0.1, 1.9],
    "translate_x": [1.6, -1.6, 4.832, -4.832],
    "translate_y": [12.896, -12.896, 4.832, -4.832],
    "shear_x": [0.167, -0.167, 0.267, -0.267],
    "shear_y": [0, 0.267, -0.267],
    "rotate": [10, 6.7, 33.3],
}
EXACT = {"equalize", "invert", "posterize", "solarize", "brightness", "translate_x", "translate_y", "rotate"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", VALUES)
def test_operation_equals_pillow(name, kind):
    batch = images()[kind]
    for value, actual in zip(VALUES[name], by_us(name, batch, VALUES[name]), strict=True):
        expected = np.stack([by_pillow(name, image, value) for image in batch]).astype(int)
        assert actual.dtype == jnp.uint8 and actual.shape == batch.shape
        difference = np.abs(np.asarray(actual).astype(int) - expected)
        assert difference.max() <= (0 if name in EXACT else 1), value
        assert np.mean(difference > 0) < 0.02, value  # a few pixels may be rounded differently


@pytest.mark.parametrize("policy", strong_view.POLICIES)
def test_signs_and_units_of_a_policy(policy):
    image = images()["wide"][0]
    height, width = image.shape[:2]
    for name, magnitude in strong_view.POLICIES[policy]:
        for sign in (1, -1):
            value = {
                "translate_x": sign * magnitude * width,
                "translate_y": sign * magnitude * height,
                "shear_x": sign * magnitude,
                "shear_y": sign * magnitude,
                "rotate": magnitude,
                "posterize": magnitude,
                "solarize": magnitude,
                **dict.fromkeys(("autocontrast", "equalize", "invert")),
            }.get(name, 1 + sign * magnitude)
            actual = jax.jit(functools.partial(strong_view.apply, name, magnitude=magnitude))(image, negative=sign < 0)
            difference = np.asarray(actual).astype(int) - by_pillow(name, image, value)
            assert np.abs(difference).max() <= 1, (name, sign)


def view(keys, batch, policy, probability):
    return np.asarray(
        jax.jit(functools.partial(strong_view.strong_view, policy=policy, probability=probability))(keys, batch)
    )


def test_operations_are_applied_with_the_probability_and_independently_for_each_image():
    batch = np.zeros((2000, 1, 1, 1), np.uint8)
    keys = jax.random.split(jax.random.key(0), 2000)
    twice = (("invert", 0), ("solarize", 128))  # a black image becomes white only if `invert` alone is applied
    for probability in (0.0, 0.3, 1.0):
        inverted = (view(keys, batch, twice[:1], probability) == 255).mean()
        assert abs(inverted - probability) < 0.04
        assert abs((view(keys, batch, twice, probability) == 255).mean() - probability * (1 - probability)) < 0.04


def test_operations_are_applied_in_order():
    batch, keys = np.full((1, 1, 1, 1), 200, np.uint8), jax.random.split(jax.random.key(0), 1)
    invert, posterize = ("invert", 0), ("posterize", 1)
    assert view(keys, batch, (invert, posterize), 1.0) == 0
    assert view(keys, batch, (posterize, invert), 1.0) == 127


def test_both_signs_are_equally_likely_but_rotations_have_one():
    batch = np.tile(np.arange(8, dtype=np.uint8)[:, None, None], (1000, 1, 8, 1))
    keys = jax.random.split(jax.random.key(0), 1000)
    down = view(keys, batch, (("translate_y", 0.25),), 1.0)[:, 0, 0, 0] == image_ops.FILL
    assert abs(down.mean() - 0.5) < 0.05
    turned = view(keys, batch, (("rotate", 10),), 1.0)
    assert np.all(turned == turned[0])


@pytest.mark.parametrize("policy", strong_view.POLICIES)
@pytest.mark.parametrize("kind", ["photographs", "digits"])
def test_the_view_of_an_image_does_not_depend_on_the_batch(policy, kind):
    batch = images()[kind]
    make = functools.partial(view, policy=strong_view.POLICIES[policy], probability=0.5)
    keys = jax.random.split(jax.random.key(1), len(batch))
    whole = make(keys, batch)
    assert whole.shape == batch.shape and whole.dtype == np.uint8
    np.testing.assert_array_equal(make(keys[3:5], batch[3:5]), whole[3:5])
    assert np.mean([np.any(a != b) for a, b in zip(whole, batch, strict=True)]) > 0.9


def test_ccd_uses_the_strong_view():
    hyper = distillers.hyperparameters("ccd", "vgg13", "vgg8", "cifar10")
    batch, keys = images()["digits"], jax.random.split(jax.random.key(1), 10)
    actual = jax.jit(distillers.create("ccd", hyper).second_view)(keys, batch)
    np.testing.assert_array_equal(actual, view(keys, batch, strong_view.POLICIES["cifar10"], 0.5))


def test_two_channels_are_refused():
    with pytest.raises(UserError, match="not of 2 channels"):
        strong_view.strong_view(jax.random.split(jax.random.key(0), 1), jnp.zeros((1, 4, 4, 2), jnp.uint8), (), 0.5)
