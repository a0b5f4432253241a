"""Every field of a config: its default, its description, its allowed values, and what it affects.

If the default is a type (`int`, `str`), the field is None until the recipe (in a `train` section) or the method
(elsewhere) sets its value. The allowed values are a tuple of strings or a `Range` of numbers; fields without them are
checked where they are used. A field affects training, and is part of the fingerprint of a run, unless it is marked
`EVALUATION` (it affects only the reported accuracies) or `NOTHING` (it affects no result).

To add a field, add one line here. The config, the checks and the fingerprint are made from these lines. The other
config files change a few values of this one.
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
_WEIGHT = Range(0, 1e9)  # larger numbers have no use in float32
_RATE = Range(1e-12, 1e3)
_FACTOR = Range(0, 1e3)
_WIDTH = Range(1, 100_000)
_COUNT = Range(1, 1e6)

# The fields of `teacher.train` and `student.train`: how a network is trained.
_TRAIN = {
    "recipe": Field(
        "paper", "Recipe for the fields that are None. See cnn2gnn_jax/training/recipes.py.", tuple(RECIPES), NOTHING
    ),
    "epochs": Field(int, "Number of passes over the training images.", _COUNT),
    "batch_size": Field(
        int, "Number of images in a training batch, which are the nodes of a graph student.", Range(2, 1e6)
    ),
    "optimizer": Field(str, "Optimizer. Both apply weight decay.", ("sgd", "adamw")),
    "learning_rate": Field(float, "Highest learning rate of the schedule.", _RATE),
    "momentum": Field(float, "Momentum of sgd.", Range(0, 0.9999)),
    "weight_decay": Field(
        float, "Weight decay: an L2 penalty on every parameter for sgd, decoupled for adamw.", _FACTOR
    ),
    "schedule": Field(
        str,
        "Learning rate schedule. one_cycle rises to learning_rate, then falls to 0.",
        ("constant", "step", "cosine", "one_cycle"),
    ),
    "milestones": Field(
        tuple, "Schedule step: fractions of all epochs after which the learning rate changes.", Range(0, 1)
    ),
    "milestone_factor": Field(
        float, "Schedule step: factor that multiplies the learning rate at a milestone.", _FACTOR
    ),
    "augment": Field(bool, "Augment training images by a random crop with padding 4 and a random flip."),
    "head_update": Field(
        "auto",
        "Rows of the head that a step updates: rows (of the batch), dense (all), auto (rows where exact).",
        ("auto", "rows", "dense"),
    ),
    "chunk_steps": Field(50, "Largest number of training steps in one call to the device.", _COUNT, NOTHING),
    "epoch": Field(
        "last",
        "Epoch to evaluate: the last one, or the best one on data.holdout (never on test images).",
        ("last", "best"),
    ),
}

FIELDS: dict[str, Field] = {
    "name": Field("digits", "Name of the config. The name of the default workdir begins with it.", changes=NOTHING),
    "method": Field(
        "cnn2gnn", "Row of the paper's tables. See METHODS in cnn2gnn_jax/distillers.", tuple(distillers.METHODS)
    ),
    "seed": Field(0, "Seed of the first student. It determines initialization, data order and augmentation.", _SEED),
    "seeds": Field(1, "Number of students, with the seeds seed, seed + 1, and so on.", Range(1, 10_000), EVALUATION),
    "cache_dir": Field(
        "~/.cache/cnn2gnn_jax", "Folder for decoded data sets, teachers and their logits.", changes=NOTHING
    ),
    "compilation_cache": Field(
        True, "Keep compiled programs in cache_dir, so that later runs start faster.", changes=NOTHING
    ),
    "compute_dtype": Field("float32", "Data type in which convolutions are computed.", ("float32", "bfloat16")),
    "tensorboard": Field(True, "Write TensorBoard events to the workdir.", changes=NOTHING),
    #
    # The data set.
    "data.name": Field(
        "digits",
        "Data set: digits, cifar10, cifar100, stl10, mini_imagenet, image_folder, or a TFDS name (array_record).",
    ),
    # An image of 4096 x 4096 pixels takes 50 MB in the cache.
    "data.image_size": Field(
        0, "Height and width in pixels to which images are resized.", Range(1, 4096, zero="as published")
    ),
    # For an image folder it determines the images, and is part of the fingerprint of a sweep's cell.
    "data.manual_dir": Field(
        "", "Folder with the data set's original files. If it is '', they are downloaded.", changes=NOTHING
    ),
    "data.residency": Field(
        "auto",
        "Where training images are kept: device, host (copied to the device a chunk ahead), auto (by their size).",
        ("auto", "device", "host"),
        NOTHING,
    ),
    "data.classes": Field(0, "Number of classes to use, the first in order.", Range(2, zero="all")),
    "data.limit": Field(
        0, "Number of images to use of each class in each split, the first in order.", Range(1, zero="all")
    ),
    "data.holdout": Field(
        0.0, "Fraction of each class's training images to hold out.", Range(0, 1, zero="none", exclusive=True)
    ),
    "data.holdout_seed": Field(0, "Seed that chooses the held-out images.", _SEED),
    "data.skip_unreadable": Field(
        False, "Skip images that cannot be read, with a warning for each, instead of failing."
    ),
    "data.test_fraction": Field(
        0.2, "Image folder without test/: fraction of each class to test on.", Range(0, 1, exclusive=True)
    ),
    "data.split_seed": Field(0, "Image folder without test/: seed that chooses the test images.", _SEED),
    #
    # The teacher, a CNN whose logits the student learns from.
    "teacher.network": Field("resnet34", "Network of the teacher. See cnn2gnn_jax/networks."),
    "teacher.stem": Field(
        "cifar", "First layers: cifar (3x3, stride 1) or downsample (7x7, stride 2, and max-pooling).", STEMS
    ),
    "teacher.seed": Field(0, "Seed of the teacher. It determines initialization, data order and augmentation.", _SEED),
    "teacher.logits_file": Field(
        "", "Path of an .npy file with logits to use instead of a teacher. See docs/bring_a_teacher.md."
    ),
    **{f"teacher.train.{name}": field for name, field in _TRAIN.items()},
    #
    # The student.
    "student.network": Field("resnet18", "Network of the CNN student, and of the backbone pair."),
    "student.stem": Field("cifar", "First layers of student.network. The values are those of teacher.stem.", STEMS),
    "student.kind": Field(str, "Kind of student. If it is None, the method determines it.", ("graph", "cnn")),
    # The paper does not specify the node features.
    "student.backbone": Field(
        "stem",
        "What computes the node features of the graph student: pixels (no layers), stem (a few convolutions), teacher "
        "(the teacher's stored pooled features), pair (the network student.network), or the name of any network.",
    ),
    "student.stem_widths": Field((32, 64, 128), "Channels of the convolutions of the backbone stem.", _WIDTH),
    "student.graph": Field(
        str,
        "off is A = I, inner_product is InGNN, euclidean is EucGNN. If it is None, the method determines the graph.",
        gnn.GRAPHS,
    ),
    "student.sparsity": Field(50, "Sparsity s of Eq. 3, the number of neighbors of a node.", Range(1)),
    "student.hidden": Field(256, "Width of the first graph convolution.", _COUNT),
    "student.head_widths": Field((512, 256), "Widths of the graph head's layers below its n_train neurons.", _WIDTH),
    "student.self_loops": Field(True, "Add self-loops (A + I) before the adjacency is normalized."),
    "student.classes_per_batch": Field(0, "Number of classes in each training batch.", Range(1, 1e6, zero="not fixed")),
    # Both losses share one set of parameters, as in BatchFormer. The total is (with + w * without) / (1 + w).
    "student.graph_off_loss_weight": Field(
        0.0, "Weight w of a second loss, of the same student without its graph (A = I).", _WEIGHT
    ),
    "student.edge_threshold": Field(
        0.0, "inner_product, euclidean: edge weights not greater than this are set to 0.", _WEIGHT
    ),
    **{f"student.train.{name}": field for name, field in _TRAIN.items()},
    #
    # How the student learns from the teacher. A description begins with the methods that use the field.
    "distill.ce_weight": Field(float, "Weight of the cross-entropy.", _WEIGHT),
    "distill.kd_weight": Field(float, "cnn2gnn, kd: weight alpha of the distillation loss (Eq. 7).", _WEIGHT),
    "distill.weight": Field(float, "Other methods: weight of the method's own loss.", _WEIGHT),
    "distill.temperature": Field(float, "Temperature tau of the softmax.", Range(1e-6, 1e9)),
    "distill.tau_squared": Field(bool, "cnn2gnn, kd: multiply the distillation loss (Eq. 7) by tau^2."),
    "distill.distance_weight": Field(float, "rkd: weight of the distance loss.", _WEIGHT),
    "distill.angle_weight": Field(float, "rkd: weight of the angle loss.", _WEIGHT),
    "distill.beta": Field(float, "dkd: weight of the non-target classes.", _WEIGHT),
    "distill.warmup": Field(int, "dkd: number of epochs over which the weight of its loss rises.", Range(0, 1e6)),
    "distill.negatives": Field(int, "crd: number of negative samples for each image.", Range(1, 1e7)),
    "distill.momentum": Field(float, "crd: momentum of the memory banks.", Range(0, 1)),
    "distill.feature_dim": Field(int, "crd: width of the embeddings.", _WIDTH),
    "distill.policy": Field(str, "ccd: operations of the strong view, cifar100 or cifar10."),
    "distill.probability": Field(float, "ccd: probability of each operation of the strong view.", Range(0, 1)),
    "distill.pretrain_epochs": Field(int, "ab, ft: number of epochs of the first stage.", _COUNT),
    "distill.pretrain_learning_rate": Field(float, "ab, ft: learning rate of the first stage.", _RATE),
    #
    # The evaluation of the student.
    "evaluate.split": Field(
        "test",
        "Images to evaluate on. holdout needs data.holdout, train.epoch last, one value in each training_set field.",
        ("test", "holdout"),
        EVALUATION,
    ),
    "evaluate.batch_size": Field(100, "Number of test images in a batch of Mechanism 2.", Range(2), EVALUATION),
    "evaluate.order_seed": Field(
        0, "Seed that shuffles test images. The student of seed k uses order_seed + k.", _SEED, EVALUATION
    ),
    "evaluate.anchors": Field(
        0,
        "Number of training images that test images are linked to in Mechanism 1 and 2.",
        Range(1, zero="student.train.batch_size"),
        EVALUATION,
    ),
    "evaluate.anchor_batches": Field(
        1, "Number of batches of anchors whose predictions are averaged.", Range(1, 10_000), EVALUATION
    ),
    # The student of seed k uses the seeds from anchor_seed + k * anchor_batches on, so that the spread over seeds
    # includes the choice of anchors. All students share one teacher, whose variation no interval includes.
    "evaluate.anchor_seed": Field(0, "Seed that chooses the anchors.", _SEED, EVALUATION),
    "evaluate.mechanism2_graph": Field(
        "similar",
        "Distances for the graph: similar (between nearest anchors), test_rows (from test images to them).",
        inference.MECHANISM2_GRAPHS,
        EVALUATION,
    ),
    "evaluate.graph_off": Field(
        True, "Also train and test the student without its graph, to measure the graph's effect.", changes=EVALUATION
    ),
    #
    # The training-set graph (Eq. 4), in addition to the paper's mechanisms. If a field has several values, the best one
    # is chosen on the held-out images of data.holdout, and is then used once on the images of evaluate.split.
    "evaluate.training_set.enabled": Field(
        False, "Also predict with the graph whose columns are all training images.", changes=EVALUATION
    ),
    "evaluate.training_set.spaces": Field(
        ("backbone", "hidden"),
        "Features to measure distances between: backbone, hidden (first layer), logits, head (head neurons).",
        neighbors.SPACES,
        EVALUATION,
    ),
    "evaluate.training_set.signals": Field(
        ("labels", "teacher"),
        "What neighbors vote with: labels (their classes) or teacher (the teacher's probabilities for them).",
        neighbors.SIGNALS,
        EVALUATION,
    ),
    "evaluate.training_set.sparsities": Field(
        (1, 3, 5, 10, 20, 30, 50, 100), "Sparsities s of Eq. 3.", Range(1), EVALUATION
    ),
    "evaluate.training_set.weights": Field(
        (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0), "Weights lambda of the votes.", Range(0, 1e3), EVALUATION
    ),
    "evaluate.training_set.epsilons": Field(
        (0.003, 0.01, 0.03, 0.1, 0.3), "Numbers added to the votes before the logarithm.", Range(1e-9, 1e3), EVALUATION
    ),
    "evaluate.training_set.key_type": Field(
        "float16", "Data type of the stored features.", ("float32", "float16", "bfloat16"), EVALUATION
    ),
    "evaluate.training_set.recall": Field(
        1.0, "Share of the nearest images that a search finds. Below 1, TPUs approximate.", Range(0.01, 1), EVALUATION
    ),
    #
    # Where and how a run is computed. These fields change results only by rounding, so a run may be continued with
    # other values.
    "checkpoint.every_seconds": Field(
        60.0, "Seconds between checkpoints. 0 saves after every chunk of steps.", Range(0), NOTHING
    ),
    "parallel.devices": Field(0, "Number of devices.", Range(1, 1e6, zero="all, of all processes"), NOTHING),
    "parallel.backend": Field(
        "shard_map", "JAX transformation that runs a step on several devices.", devices.BACKENDS, NOTHING
    ),
    "parallel.seeds": Field(False, "Distribute whole students over devices, instead of each batch.", changes=NOTHING),
    "parallel.shard_head": Field(
        False, "Store a part of the head's n_train rows on each device, instead of all.", changes=NOTHING
    ),
}


def get_config() -> ml_collections.ConfigDict:
    """Returns a config of all fields with their defaults."""
    return fields.to_config(FIELDS)


def with_word(
    config: ml_collections.ConfigDict, word: str, **sizes: Callable[[ml_collections.ConfigDict], None]
) -> ml_collections.ConfigDict:
    """Applies the word after the colon of `--config=FILE:WORD`, which is a size or a pair of networks.

    Args:
      config: the config, which is changed in place and returned.
      word: '' for no change, a key of `sizes`, or a pair of teacher and student such as `resnet50-resnet18`.
      **sizes: functions that change a config in place, by the name of the size.

    Raises:
      UserError: `word` is neither a size nor a pair.
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
    """Reduces a run to minutes on 2 CPU cores: 100 images of each class, small networks, few epochs."""
    config.name += "-smoke"
    config.data.limit = 100
    config.teacher.network = config.student.network = "resnet8"
    config.teacher.train.epochs, config.student.train.epochs = 8, 6
    config.teacher.train.learning_rate = 0.05
