import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn2gnn_jax.data import augment


def images_of_noise(n: int, height: int = 6, width: int = 5, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (n, height, width, channels), np.uint8)


def views(image: np.ndarray, padding: int) -> dict[bytes, tuple[int, int, bool]]:
    """Returns the position of every possible crop and whether it is mirrored, with the bytes of the crop as the key."""
    padded = np.zeros((image.shape[0] + 2 * padding, image.shape[1] + 2 * padding, image.shape[2]), image.dtype)
    padded[padding : padding + image.shape[0], padding : padding + image.shape[1]] = image
    views = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[top : top + image.shape[0], left : left + image.shape[1]]
            views[crop.tobytes()] = (top, left, False)
            views[crop[:, ::-1].tobytes()] = (top, left, True)
    return views


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_crops_with_black_padding_and_all_crops_are_equally_likely(padding, channels):
    image = images_of_noise(1, channels=channels)[0]
    n = 400 * (2 * padding + 1) ** 2
    batch = jnp.broadcast_to(image, (n, *image.shape))
    out = jax.jit(augment.crop_and_flip, static_argnums=2)(jax.random.split(jax.random.key(0), n), batch, padding)
    assert out.dtype == jnp.uint8 and out.shape == batch.shape
    possible = views(image, padding)
    drawn = [possible[view.tobytes()] for view in np.asarray(out)]
    counts = np.array([drawn.count(view) for view in possible.values()])
    assert len(counts) == 2 * (2 * padding + 1) ** 2
    assert np.all(abs(counts - 200) < 5 * np.sqrt(200))


def test_the_view_of_an_image_depends_only_on_its_key():
    batch, keys = images_of_noise(8), jax.random.split(jax.random.key(1), 8)
    whole = augment.crop_and_flip(keys, batch)
    np.testing.assert_array_equal(whole[3:5], augment.crop_and_flip(keys[3:5], batch[3:5]))
    raw_keys = jax.random.key_data(keys)
    np.testing.assert_array_equal(whole, augment.crop_and_flip(raw_keys, batch))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_normalize(dtype):
    batch, mean, std = images_of_noise(2).astype(dtype), (0.1, 0.5, 0.7), (0.2, 0.3, 0.25)
    out = augment.normalize(batch, mean, std)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, (batch.astype(np.float64) / 255 - mean) / std, rtol=1e-5, atol=1e-6)
    assert augment.normalize(batch, mean, std, jnp.bfloat16).dtype == jnp.bfloat16
