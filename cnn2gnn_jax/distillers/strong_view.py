"""The strongly augmented view of CCD (Li et al., 2022): a sequence of fourteen operations, applied at random."""

import functools

import jax
import jax.numpy as jnp

from cnn2gnn_jax.distillers import image_ops
from cnn2gnn_jax.distillers.base import Setting
from cnn2gnn_jax.runtime.errors import UserError

Policy = tuple[tuple[str, float], ...]

# Operations and their magnitudes: a fraction of the height or width for translations, a slope for shears, degrees for
# the rotation, and the difference of the factor from 1 for contrast, brightness, sharpness and color.
POLICIES: dict[str, Policy] = {
    "cifar100": (
        ("autocontrast", 0),
        ("contrast", 0.3),
        ("posterize", 8),
        ("solarize", 142),
        ("translate_y", 0.403),
        ("shear_x", 0.167),
        ("brightness", 0.3),
        ("shear_y", 0),
        ("translate_x", 0.05),
        ("sharpness", 0.5),
        ("invert", 0),
        ("color", 0.4),
        ("equalize", 0),
        ("rotate", 10),
    ),
    "cifar10": (
        ("invert", 0),
        ("rotate", 6.7),
        ("shear_y", 0.267),
        ("posterize", 4),
        ("autocontrast", 0),
        ("color", 0.3),
        ("sharpness", 0.9),
        ("equalize", 0),
        ("contrast", 0.7),
        ("translate_y", 0.151),
        ("brightness", 0.6),
        ("solarize", 199),
        ("translate_x", 0.151),
        ("shear_x", 0.267),
    ),
}
PROBABILITIES = {"cifar100": 0.3, "cifar10": 0.5}


def published_policy(setting: Setting) -> str:
    """The name of the published policy: `cifar10` for CIFAR-10, and `cifar100` for all other data sets."""
    return "cifar10" if setting.data == "cifar10" else "cifar100"


def published_probability(setting: Setting) -> float:
    """The published probability of each operation for the data set."""
    return PROBABILITIES[published_policy(setting)]


def policy(name: str) -> Policy:
    """The policy called `name`.

    Raises:
      UserError: the name is unknown.
    """
    if name not in POLICIES:
        raise UserError(f"distill.policy is {name!r}: choose one of {', '.join(POLICIES)}")
    return POLICIES[name]


def strong_view(keys_B: jax.Array, images_BxHxWxC: jax.Array, policy: Policy, probability: float) -> jax.Array:
    """Applies the operations of a policy to each image, each with the given probability and a random sign.

    Args:
      keys_B: one key for each image, so that the result does not depend on how the batch is distributed over devices.
      images_BxHxWxC: uint8, 1 or 3 channels.
      policy: operations and magnitudes.
      probability: probability of each operation, independently for each image.

    Returns:
      (B, H, W, C) uint8.

    Raises:
      UserError: the images have another number of channels.
    """
    if images_BxHxWxC.shape[-1] not in (1, 3):
        raise UserError(
            f"the method ccd needs images of 1 or 3 channels, not of {images_BxHxWxC.shape[-1]} channels: "
            "choose another method"
        )
    return jax.vmap(functools.partial(_strong_view, policy=policy, probability=probability))(keys_B, images_BxHxWxC)


def _strong_view(key: jax.Array, image: jax.Array, policy: Policy, probability: float) -> jax.Array:
    draws = jax.random.uniform(key, (len(policy), 2))
    for (name, magnitude), (draw, sign_draw) in zip(policy, draws, strict=True):
        image = jnp.where(draw < probability, apply(name, image, magnitude, sign_draw < 0.5), image)
    return image


def apply(name: str, image: jax.Array, magnitude: float, negative: jax.Array) -> jax.Array:
    """Applies one operation of a policy to an image (H, W, C) uint8.

    Args:
      name: the name of the operation.
      image: (H, W, C) uint8.
      magnitude: see `POLICIES`.
      negative: a boolean scalar, whether to use the negative magnitude. Operations without a sign ignore it.
    """
    height, width = image.shape[:2]
    match name:
        case "autocontrast" | "equalize" | "invert":
            return getattr(image_ops, name)(image)
        case "brightness" | "contrast" | "color" | "sharpness":
            return getattr(image_ops, name)(image, jnp.where(negative, 1 - magnitude, 1 + magnitude))
        case "posterize" | "solarize":
            return getattr(image_ops, name)(image, int(magnitude))
        case "rotate":  # always counterclockwise, as in the published implementation
            return image_ops.rotate(image, magnitude)
    operation = getattr(image_ops, name)
    argument = magnitude * {"translate_x": width, "translate_y": height}.get(name, 1)
    return jnp.where(negative, operation(image, -argument), operation(image, argument))
