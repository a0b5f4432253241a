"""Every field of a config: its default, its meaning, the values that it may have, and what it changes.

A type in place of a default (`int`, `str`) means None until the recipe (in a `train` section) or the method (elsewhere)
gives the value. Words to choose from follow, or a `Range` of numbers, which of a tuple holds for each element; other
fields are checked where they are looked up. A field changes what is trained, and so is part of a run's fingerprint,
unless it says `EVALUATION` (it changes only the figures that are reported) or `NOTHING`.

A new field is one more line here: the config, the checks of its values and its fingerprint are made of these lines. The
other files differ from this one in a few values.
"""

from collections.abc import Callable

import ml_collections

from cnn2gnn_jax import distillers, gnn, inference, neighbors, networks
from cnn2gnn_jax.networks.layers import STEMS
from cnn2gnn_jax.runtime import devices, fields
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.runtime.fields import EVALUATION, NOTHING, Field, Range
from cnn2gnn_jax.training.recipes import RECIPES

_SEED = Range(0, 2**31 - 1)
_WEIGHT = Range(0, 1e9)  # beyond it float32 has no use for a number
_RATE = Range(1e-12, 1e3)
_FACTOR = Range(0, 1e3)
_WIDTH = Range(1, 100_000)
_COUNT = Range(1, 1e6)

# How a network is trained: the fields of `teacher.train` and `student.train`.
_TRAIN = {
    "recipe": Field("paper", "gives what is None here, see cnn2gnn_jax/training/recipes.py", tuple(RECIPES), NOTHING),
    "epochs": Field(int, "passes over the training images", _COUNT),
    "batch_size": Field(int, "images in a step: for the graph student, nodes in the graph", Range(2, 1e6)),
    "optimizer": Field(str, "both with decay of weights", ("sgd", "adamw")),
    "learning_rate": Field(float, "the highest one of the schedule", _RATE),
    "momentum": Field(float, "of sgd", Range(0, 0.9999)),
    "weight_decay": Field(float, "of sgd as an L2 penalty on every parameter, of adamw decoupled", _FACTOR),
    "schedule": Field(
        str,
        "of the rate; one_cycle rises to learning_rate, then falls to 0",
        ("constant", "step", "cosine", "one_cycle"),
    ),
    "milestones": Field(tuple, "of step: parts of the epochs after which the rate falls", Range(0, 1)),
    "milestone_factor": Field(float, "of step: what the rate is multiplied by", _FACTOR),
    "augment": Field(bool, "random crop with padding 4, and flip"),
    "head_update": Field(
        "auto",
        "the head's decision layer: rows (those of the batch), dense, auto (rows if exact)",
        ("auto", "rows", "dense"),
    ),
    "chunk_steps": Field(50, "the most steps in one device call", _COUNT, NOTHING),
    "epoch": Field(
        "last", "which epoch is evaluated: the last, or the best on data.holdout, never on test", ("last", "best")
    ),
}

FIELDS: dict[str, Field] = {
    "name": Field("digits", "begins the name of the default workdir", changes=NOTHING),
    "method": Field(
        "cnn2gnn", "the row of the paper's tables, see METHODS in cnn2gnn_jax/distillers", tuple(distillers.METHODS)
    ),
    "seed": Field(0, "of the first student: initialisation, order, augmentation", _SEED),
    "seeds": Field(
        1,
        "students with seeds seed, seed + 1, ...; those without convolutions train side by side",
        Range(1, 10_000),
        EVALUATION,
    ),
    "cache_dir": Field("~/.cache/cnn2gnn_jax", "decoded data sets, teachers and their logits", changes=NOTHING),
    "compilation_cache": Field(
        True, "keep compiled programs in cache_dir, so that a second run starts sooner", changes=NOTHING
    ),
    "compute_dtype": Field("float32", "of convolutions", ("float32", "bfloat16")),
    "tensorboard": Field(True, "TensorBoard events in the workdir", changes=NOTHING),
    #
    # The images.
    #
    "data.name": Field(
        "digits",
        "digits, cifar10, cifar100, stl10, mini_imagenet, image_folder, or a TFDS name prepared as array_record",
    ),
    # An image of 4096 x 4096 is 50 MB in the cache.
    "data.image_size": Field(
        0, "images are resized to this square on the way into the cache", Range(1, 4096, zero="as published")
    ),
    # Of an image folder it tells the images, and is part of its fingerprint.
    "data.manual_dir": Field(
        "", "where the data set's own files are; '' takes the download or the cache", changes=NOTHING
    ),
    "data.residency": Field(
        "auto",
        "where the training set is in training: device, host (gathered a chunk ahead), auto (by its size)",
        ("auto", "device", "host"),
        NOTHING,
    ),
    "data.classes": Field(0, "the first classes alone", Range(2, zero="all")),
    "data.limit": Field(0, "images of each class kept in each split", Range(1, zero="all")),
    "data.holdout": Field(
        0.0,
        "part of the training images of each class kept aside for choosing",
        Range(0, 1, zero="none", exclusive=True),
    ),
    "data.holdout_seed": Field(0, "chooses them", _SEED),
    "data.skip_unreadable": Field(
        False, "leave out images that cannot be read, with a warning each, instead of refusing"
    ),
    "data.test_fraction": Field(
        0.2,
        "of an image folder without test/: the part of each class that is tested on",
        Range(0, 1, exclusive=True),
    ),
    "data.split_seed": Field(0, "chooses it", _SEED),
    #
    # The CNN whose logits are learned from.
    #
    "teacher.network": Field("resnet34", "see cnn2gnn_jax/networks"),
    "teacher.stem": Field("cifar", "cifar (3x3, stride 1), downsample (7x7, stride 2, and max-pool)", STEMS),
    "teacher.seed": Field(0, "initialisation, order, augmentation", _SEED),
    "teacher.logits_file": Field(
        "", "an .npy of (training images, classes) from elsewhere instead; see docs/bring_a_teacher.md"
    ),
    **{f"teacher.train.{name}": field for name, field in _TRAIN.items()},
    #
    # The network that learns.
    #
    "student.network": Field("resnet18", "the pair's CNN student, for the CNN methods and the backbone `pair`"),
    "student.stem": Field("cifar", "as teacher.stem", STEMS),
    "student.kind": Field(str, "None: the method's own", ("graph", "cnn")),
    # The paper does not say.
    "student.backbone": Field(
        "stem",
        "node features of the graph student: pixels, stem (a few convolutions), teacher (its stored pooled features), "
        "pair (student.network), or any network",
    ),
    "student.stem_widths": Field((32, 64, 128), "channels of the backbone `stem`", _WIDTH),
    "student.graph": Field(
        str,
        "inner_product is InGNN, euclidean is EucGNN, off is A = I; None: the method's own, or learned",
        gnn.GRAPHS,
    ),
    "student.sparsity": Field(50, "s of Eq. 3", Range(1)),
    "student.hidden": Field(256, "width of the first graph convolution", _COUNT),
    "student.head_widths": Field((512, 256), "the graph head's layers under its n_train neurons", _WIDTH),
    "student.self_loops": Field(True, "A + I before normalisation"),
    "student.classes_per_batch": Field(
        0, "every training batch holds images of exactly so many classes", Range(1, 1e6, zero="as drawn")
    ),
    # Under the same weights, as BatchFormer's shared classifier: the loss is the mean (with + w * without) / (1 + w).
    "student.off_weight": Field(0.0, "weight w of the same loss without the graph (A = I)", _WEIGHT),
    "student.threshold": Field(0.0, "the smallest weight kept in the graphs inner_product and euclidean", _WEIGHT),
    **{f"student.train.{name}": field for name, field in _TRAIN.items()},
    #
    # How the student learns from the teacher; a method has only the fields that it uses.
    #
    "distill.ce_weight": Field(float, "of the cross-entropy", _WEIGHT),
    "distill.kd_weight": Field(float, "cnn2gnn, kd: of Eq. 7 (alpha)", _WEIGHT),
    "distill.weight": Field(float, "the others: of the method's own loss", _WEIGHT),
    "distill.temperature": Field(float, "tau", Range(1e-6, 1e9)),
    "distill.tau_squared": Field(bool, "cnn2gnn, kd: multiply Eq. 7 by tau^2"),
    "distill.distance_weight": Field(float, "rkd", _WEIGHT),
    "distill.angle_weight": Field(float, "rkd", _WEIGHT),
    "distill.beta": Field(float, "dkd: of the classes that are not the target", _WEIGHT),
    "distill.warmup": Field(int, "dkd: epochs over which its loss sets in", Range(0, 1e6)),
    "distill.negatives": Field(int, "crd: for each image", Range(1, 1e7)),
    "distill.momentum": Field(float, "crd: of its banks", Range(0, 1)),
    "distill.feature_dim": Field(int, "crd: of its embeddings", _WIDTH),
    "distill.policy": Field(str, "ccd: cifar100 or cifar10, the operations of the strong view"),
    "distill.probability": Field(float, "ccd: of each operation", Range(0, 1)),
    "distill.pretrain_epochs": Field(int, "ab, ft: of the first stage", _COUNT),
    "distill.pretrain_learning_rate": Field(float, "ab, ft: of the first stage", _RATE),
    #
    # What the student is tested on, and how.
    #
    "evaluate.split": Field(
        "test",
        "holdout: of the training images, to choose settings on; see data.holdout; not where the run itself chooses on "
        "them (train.epoch = best, several values of evaluate.training_set)",
        ("test", "holdout"),
        EVALUATION,
    ),
    "evaluate.batch_size": Field(100, "test images in a graph of Mechanism 2", Range(2), EVALUATION),
    "evaluate.order_seed": Field(
        0, "of the shuffled order of the test images; the student of seed k has order_seed + k", _SEED, EVALUATION
    ),
    "evaluate.anchors": Field(
        0,
        "images in a training batch that test images are linked to",
        Range(1, zero="student.train.batch_size"),
        EVALUATION,
    ),
    "evaluate.anchor_batches": Field(1, "their class probabilities are averaged", Range(1, 10_000), EVALUATION),
    # The student of seed k has anchor_batches of them from anchor_seed + k * anchor_batches on, so that the spread over
    # seeds is theirs too. The teacher is one for all students: its own chance is in no interval.
    "evaluate.anchor_seed": Field(0, "chooses the anchors", _SEED, EVALUATION),
    "evaluate.reading": Field(
        "similar",
        "of Mechanism 2's graph: similar (rows and columns of sim), test_rows",
        inference.READINGS,
        EVALUATION,
    ),
    "evaluate.graph_off": Field(
        True, "also train and test the same student with A = I, to tell what the graph is worth", changes=EVALUATION
    ),
    #
    # The graph over the training set (Eq. 4), beside the paper's mechanisms. What has several values here is chosen on
    # the held-out images of data.holdout, and is then read once on the others.
    #
    "evaluate.training_set.enabled": Field(
        False, "also answer with the graph whose columns are all training images", changes=EVALUATION
    ),
    "evaluate.training_set.spaces": Field(
        ("backbone", "hidden"),
        "features that distances are measured between: backbone, hidden (the first layer), logits, head (its neurons)",
        neighbors.SPACES,
        EVALUATION,
    ),
    "evaluate.training_set.signals": Field(
        ("labels", "teacher"),
        "what a training image sends to its neighbours: its label, or its teacher's probabilities",
        neighbors.SIGNALS,
        EVALUATION,
    ),
    "evaluate.training_set.sparsities": Field((1, 3, 5, 10, 20, 30, 50, 100), "s of Eq. 3", Range(1), EVALUATION),
    "evaluate.training_set.weights": Field(
        (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0),
        "lambda: how much the neighbours count beside the student",
        Range(0, 1e3),
        EVALUATION,
    ),
    "evaluate.training_set.epsilons": Field(
        (0.003, 0.01, 0.03, 0.1, 0.3),
        "added to the neighbours' votes before their logarithm",
        Range(1e-9, 1e3),
        EVALUATION,
    ),
    "evaluate.training_set.key_type": Field(
        "float16", "the type of the stored features", ("float32", "float16", "bfloat16"), EVALUATION
    ),
    #
    # Where and how a run is computed, which changes no result but for rounding: runs go on under another setting.
    #
    "checkpoint.every_seconds": Field(60.0, "between checkpoints; 0: after every chunk of steps", Range(0), NOTHING),
    "parallel.devices": Field(0, "how many", Range(1, 1e6, zero="all, of all processes"), NOTHING),
    "parallel.backend": Field("shard_map", "what maps a step over the devices", devices.BACKENDS, NOTHING),
    "parallel.seeds": Field(
        False, "students that train side by side are spread over devices instead of each batch", changes=NOTHING
    ),
    "parallel.shard_head": Field(
        False, "each device keeps a part of the head's n_train rows instead of all", changes=NOTHING
    ),
}


def get_config() -> ml_collections.ConfigDict:
    """A config of all fields with their defaults."""
    return fields.to_config(FIELDS)


def with_word(
    config: ml_collections.ConfigDict, word: str, **sizes: Callable[[ml_collections.ConfigDict], None]
) -> ml_collections.ConfigDict:
    """Applies the one word after the config's colon: a size, or a pair of networks.

    Args:
      config: a config.
      word: '' for none; a key of `sizes`; or a pair, `resnet50-resnet18`.
      **sizes: functions that change a config in place.

    Raises:
      UserError: neither.
    """
    if word in sizes:
        sizes[word](config)
    elif word:
        try:
            config.teacher.network, config.student.network = networks.parse_pair(word)
        except UserError as error:
            raise UserError(
                f"{word!r} after the colon is neither a size ({', '.join(sizes)}) nor a pair: {error}"
            ) from None
    return config


def smoke(config: ml_collections.ConfigDict) -> None:
    """A size that 2 CPU cores finish in minutes: 100 images of each class, small networks, few epochs."""
    config.name += "-smoke"
    config.data.limit = 100
    config.teacher.network = config.student.network = "resnet8"
    config.teacher.train.epochs, config.student.train.epochs = 8, 6
    config.teacher.train.learning_rate = 0.05
