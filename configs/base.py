"""Every field, with its meaning and default. The other files differ from this one in a few lines.

`None` stands for what the recipe (`train` sections) or the method (`distill` section) says.
"""

import ml_collections
from ml_collections import config_dict

from cnn2gnn_jax import networks
from cnn2gnn_jax.runtime.errors import UserError


def _train() -> ml_collections.ConfigDict:
    """How a network is trained; `recipe` gives whatever is None here (see RECIPES in cnn2gnn_jax/config.py)."""
    train = ml_collections.ConfigDict()
    train.recipe = "paper"  # paper | crd | fast
    train.epochs = config_dict.placeholder(int)
    train.batch_size = config_dict.placeholder(int)  # images in a step: for the graph student, nodes in the graph
    train.optimizer = config_dict.placeholder(str)  # sgd | adamw
    train.learning_rate = config_dict.placeholder(float)
    train.momentum = config_dict.placeholder(float)  # of sgd
    train.weight_decay = config_dict.placeholder(float)
    train.schedule = config_dict.placeholder(
        str
    )  # constant | step | cosine | one_cycle (up to learning_rate, then down to 0)
    train.milestones = config_dict.placeholder(tuple)  # of step: parts of the epochs after which the rate falls
    train.milestone_factor = config_dict.placeholder(float)  # of step: what the rate is multiplied by
    train.augment = config_dict.placeholder(bool)  # random crop with padding 4, and flip
    train.head_update = "auto"  # the head's decision layer: rows (those of the batch) | dense | auto (rows if exact)
    train.chunk_steps = 50  # the most steps in one device call
    train.epoch = "last"  # which epoch is evaluated: last | best (on data.holdout, never on test)
    return train


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.name = "digits"  # begins the name of the default workdir
    config.method = "cnn2gnn"  # the row of the paper's tables, see METHODS in cnn2gnn_jax/distillers
    config.seed = 0  # of the first student: initialisation, order, augmentation
    config.seeds = 1  # students with seeds seed, seed + 1, ...; those without convolutions train side by side
    config.cache_dir = "~/.cache/cnn2gnn_jax"  # decoded data sets, teachers and their logits
    config.compilation_cache = True  # keep compiled programs in cache_dir, so that a second run starts sooner
    config.compute_dtype = "float32"  # of convolutions: float32 | bfloat16

    data = config.data = ml_collections.ConfigDict()
    # digits | cifar10 | cifar100 | stl10 | mini_imagenet | image_folder | a TFDS name prepared as array_record
    data.name = "digits"
    data.image_size = 0  # images are resized to this square on the way into the cache; 0 leaves them as published
    data.manual_dir = ""  # where the data set's own files are; '' takes the download or the cache
    data.residency = "auto"  # the training set in training: device | host (gathered a chunk ahead) | auto (by its size)
    data.classes = 0  # the first classes alone; 0 keeps all
    data.limit = 0  # images of each class kept in each split; 0 keeps all
    data.holdout = 0.0  # part of the training images of each class kept aside for choosing
    data.holdout_seed = 0
    data.skip_unreadable = False  # leave out images that cannot be read, with a warning each, instead of refusing
    data.test_fraction = 0.2  # of an image folder without test/: the part of each class that is tested on
    data.split_seed = 0  # chooses it

    teacher = config.teacher = ml_collections.ConfigDict()
    teacher.network = "resnet34"
    teacher.stem = "cifar"  # cifar (3x3, stride 1) | downsample (7x7, stride 2, and max-pool)
    teacher.seed = 0
    teacher.logits_file = (
        ""  # an .npy of (training images, classes) from elsewhere instead; see docs/bring_a_teacher.md
    )
    teacher.train = _train()

    student = config.student = ml_collections.ConfigDict()
    student.network = "resnet18"  # the pair's CNN student, for the CNN methods and the backbone `pair`
    student.stem = "cifar"
    student.kind = config_dict.placeholder(str)  # graph | cnn; None: the method's own
    # Node features of the graph student: pixels | stem (a few convolutions) | teacher (its stored pooled features) |
    # pair (student.network) | any network. The paper does not say.
    student.backbone = "stem"
    student.stem_widths = (32, 64, 128)  # channels of the backbone `stem`
    # learned | off | inner_product (InGNN) | euclidean (EucGNN) | euclidean_sparse; None: the method's own, or learned
    student.graph = config_dict.placeholder(str)
    student.sparsity = 50  # s of Eq. 3
    student.hidden = 256  # width of the first graph convolution
    student.head_widths = (512, 256)  # the graph head's layers under its n_train neurons
    student.self_loops = True  # A + I before normalisation
    student.classes_per_batch = 0  # every training batch holds images of exactly so many classes; 0: as drawn
    # Weight w of the same loss without the graph (A = I), under the same weights (BatchFormer's shared classifier): the
    # loss is the mean (with + w * without) / (1 + w).
    student.off_weight = 0.0
    student.threshold = 0.0  # the smallest weight kept in the graphs inner_product and euclidean
    student.train = _train()

    distill = config.distill = ml_collections.ConfigDict()
    distill.ce_weight = config_dict.placeholder(float)  # of the cross-entropy
    distill.kd_weight = config_dict.placeholder(float)  # cnn2gnn, kd: of Eq. 7 (alpha)
    distill.weight = config_dict.placeholder(float)  # the others: of the method's own loss
    distill.temperature = config_dict.placeholder(float)  # tau
    distill.tau_squared = config_dict.placeholder(bool)  # cnn2gnn, kd: multiply Eq. 7 by tau^2
    distill.distance_weight = config_dict.placeholder(float)  # rkd
    distill.angle_weight = config_dict.placeholder(float)  # rkd
    distill.beta = config_dict.placeholder(float)  # dkd: of the classes that are not the target
    distill.warmup = config_dict.placeholder(int)  # dkd: epochs over which its loss sets in
    distill.negatives = config_dict.placeholder(int)  # crd: for each image
    distill.momentum = config_dict.placeholder(float)  # crd: of its banks
    distill.feature_dim = config_dict.placeholder(int)  # crd: of its embeddings
    distill.policy = config_dict.placeholder(str)  # ccd: cifar100 | cifar10, the operations of the strong view
    distill.probability = config_dict.placeholder(float)  # ccd: of each operation
    distill.pretrain_epochs = config_dict.placeholder(int)  # ab, ft: of the first stage
    distill.pretrain_learning_rate = config_dict.placeholder(float)  # ab, ft: of the first stage

    evaluate = config.evaluate = ml_collections.ConfigDict()
    # test | holdout (of the training images, to choose settings on; see data.holdout; not with train.epoch = best)
    evaluate.split = "test"
    evaluate.batch_size = 100  # test images in a graph of Mechanism 2
    evaluate.order_seed = 0  # of the shuffled order of the test images; the student of seed k has order_seed + k
    evaluate.anchors = 0  # images in a training batch that test images are linked to; 0: student.train.batch_size
    evaluate.anchor_batches = 1  # their class probabilities are averaged
    # Chooses the anchors: the student of seed k has anchor_batches of them from anchor_seed + k * anchor_batches on, so
    # that the spread over seeds is theirs too. The teacher is one for all students: its own chance is in no interval.
    evaluate.anchor_seed = 0
    evaluate.reading = "similar"  # of Mechanism 2's graph: similar (rows and columns of sim) | test_rows
    evaluate.graph_off = True  # also train and test the same student with A = I, to tell what the graph is worth

    checkpoint = config.checkpoint = ml_collections.ConfigDict()
    checkpoint.every_seconds = 60.0  # between checkpoints; 0: after every chunk of steps

    # Where a run is computed. Nothing here changes a result, but for rounding: runs go on under another setting.
    parallel = config.parallel = ml_collections.ConfigDict()
    parallel.devices = 0  # how many; 0: all, of all processes
    parallel.backend = "shard_map"  # shard_map | pmap
    parallel.seeds = False  # students that train side by side are spread over devices instead of each batch
    parallel.shard_head = False  # each device keeps a part of the head's n_train rows instead of all
    config.tensorboard = True  # TensorBoard events in the workdir
    return config


def with_word(config: ml_collections.ConfigDict, word: str, **sizes) -> ml_collections.ConfigDict:
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
