"""The folder of the recorded run `image_folder`: 1,000 pictures of Mini-ImageNet, made as untidy as a user's.

    python results/make_image_folder.py MINI_IMAGENET OUT

Ten classes of 100 pictures: sides from 48 to 168 pixels, JPEG, PNG and WebP, some grey, of 16 bits, with alpha or
turned by their EXIF data; 5 are broken.
"""

import pathlib
import sys

import numpy as np
from PIL import Image

from cnn2gnn_jax.data.builders.mini_imagenet import files_by_class
from cnn2gnn_jax.data.builders.mini_imagenet_names import NAMES

CLASSES, PICTURES = 10, 100


def main(mini_imagenet: pathlib.Path, out: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    files = files_by_class(mini_imagenet)
    for number, wnid in enumerate(sorted(files)[:: len(files) // CLASSES][:CLASSES]):
        folder = out / NAMES.get(wnid, wnid)
        folder.mkdir(parents=True)
        for i, name in enumerate(files[wnid][:PICTURES]):
            image = Image.open(mini_imagenet / "images" / name).convert("RGB")
            width, height = (int(side) for side in rng.integers(48, 169, 2))
            image = image.resize((width, height), Image.Resampling.BICUBIC)
            path = folder / f"{i:03d}.jpg"
            if i % 10 == 3:
                image.convert("L").save(path, quality=90)
            elif i % 20 == 5:
                image.putalpha(Image.fromarray(rng.integers(128, 256, (height, width), np.uint8)))
                image.save(path.with_suffix(".png"))
            elif i % 20 == 6:
                Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path.with_suffix(".png"))
            elif i % 10 == 7:
                image.save(path.with_suffix(".webp"), quality=90)
            elif i % 10 == 8:
                exif = Image.Exif()
                exif[0x0112] = 6
                image.transpose(Image.Transpose.ROTATE_90).save(path, quality=90, exif=exif)
            else:
                image.save(path, quality=90)
        if number % 2 == 0:
            broken = folder / f"{10 * number:03d}.jpg"
            broken.write_bytes(broken.read_bytes()[: 300 * number])


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
