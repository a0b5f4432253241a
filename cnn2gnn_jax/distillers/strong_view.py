"""The strongly augmented view of CCD (Li et al., 2022): fourteen operations in sequence, each with a probability."""

import functools

import jax
import jax.numpy as jnp

from cnn2gnn_jax.distillers import image_ops
from cnn2gnn_jax.distillers.base import Setting
from cnn2gnn_jax.runtime.errors import UserError

Policy = tuple[tuple[str, float], ...]

# Names of OPERATIONS and their magnitudes: a part of the height or width for translations, a slope for shears, degrees
# for the rotation, the distance of the factor from 1 for contrast, brightness, sharpness and colour.
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
    """The name of the policy by data set: CIFAR-10 has its own, all others take CIFAR-100's."""
    return "cifar10" if setting.data == "cifar10" else "cifar100"


def published_probability(setting: Setting) -> float:
    """The probability of each operation by data set."""
    return PROBABILITIES[published_policy(setting)]


def policy(name: str) -> Policy:
    """The policy called `name`.

    Raises:
      UserError: unknown name.
    """
    if name not in POLICIES:
        raise UserError(f"distill.policy is {name!r}: choose one of {', '.join(POLICIES)}")
    return POLICIES[name]


def strong_view(keys_B: jax.Array, images_BxHxWxC: jax.Array, policy: Policy, probability: float) -> jax.Array:
    """The images after each operation of the policy with its probability; signs of magnitudes are random.

    Args:
      keys_B: one key an image, so that the result does not depend on how the batch is spread over devices.
      images_BxHxWxC: uint8, 1 or 3 channels.
      policy: operations and magnitudes.
      probability: of each operation, for each image.

    Returns:
      (B, H, W, C) uint8.
    """
    if images_BxHxWxC.shape[-1] not in (1, 3):
        raise UserError(f"ccd's strong view is made of grey or RGB images, not of {images_BxHxWxC.shape[-1]} channels")
    return jax.vmap(functools.partial(_one, policy=policy, probability=probability))(keys_B, images_BxHxWxC)


def _one(key: jax.Array, image: jax.Array, policy: Policy, probability: float) -> jax.Array:
    draws = jax.random.uniform(key, (len(policy), 2))
    for (name, magnitude), (chance, sign) in zip(policy, draws, strict=True):
        image = jnp.where(chance < probability, apply(name, image, magnitude, sign < 0.5), image)
    return image


def apply(name: str, image: jax.Array, magnitude: float, negative: jax.Array) -> jax.Array:
    """One operation of a policy on an image (H, W, C) uint8; `negative` is a scalar, the sign where there is one."""
    height, width = image.shape[:2]
    match name:
        case "autocontrast" | "equalize" | "invert":
            return getattr(image_ops, name)(image)
        case "brightness" | "contrast" | "color" | "sharpness":
            return getattr(image_ops, name)(image, jnp.where(negative, 1 - magnitude, 1 + magnitude))
        case "posterize" | "solarize":
            return getattr(image_ops, name)(image, int(magnitude))
        case "rotate":  # never the other way in the published view
            return image_ops.rotate(image, magnitude)
    move = getattr(image_ops, name)
    distance = magnitude * {"translate_x": width, "translate_y": height}.get(name, 1)
    return jnp.where(negative, move(image, -distance), move(image, distance))
