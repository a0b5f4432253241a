"""The config of the runs under faults: 200 digits, eight steps of training, a checkpoint after every second step.

The word after the colon is a method: `cnn2gnn`; `ab`, which trains in two stages; or `training_set`, which is `cnn2gnn`
with the training-set graph and its bank.
"""

from cnn2gnn_jax.configs import digits


def get_config(method="cnn2gnn"):
    config = digits.get_config("smoke")
    config.method = "cnn2gnn" if method == "training_set" else method
    config.data.limit = 20
    for train in (config.teacher.train, config.student.train):
        train.epochs, train.batch_size, train.chunk_steps = 2, 50, 2
    config.student.stem_widths, config.student.head_widths = (4,), (32, 16)
    config.student.sparsity = config.student.hidden = 20
    config.evaluate.graph_off = False
    config.checkpoint.every_seconds = 0.0
    config.compilation_cache = False  # all runs share the cache that `runs.prepare` sets up
    if method == "ab":
        config.distill.pretrain_epochs = 1
    if method == "training_set":
        config.data.limit, config.data.holdout = 22, 0.1  # 20 images of each class remain
        config.evaluate.training_set.enabled = True
    return config
