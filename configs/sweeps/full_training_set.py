"""The graph over the training set: what it adds to graph students that are trained without a graph.

    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/full_training_set.py:cifar100 --out=DIR
    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/full_training_set.py:mini_imagenet --out=DIR \
        --config.data.manual_dir=DIR
    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/full_training_set.py:cifar100-cpu --out=DIR

A tenth of the training images is held out. The learning rate and the number of epochs of each student are chosen on
these images, and so are the settings of its graph. Test images are evaluated once. The row `wide` is a control: a
student whose hidden layer is so wide that an image costs about as many multiplications as the search among all training
images. `-cpu` has only the students on the teacher's stored features. The sweep `full_baselines` has the CNN students.
"""

from ml_collections import ConfigDict

from cnn2gnn_jax.configs.sweeps import full, grids

WORDS = full.WORDS
SEEDS = 5
WIDE = {"": 32768, "cpu": 4096, "smoke": 2048, "digits": 2048}
"""Width of the control's hidden layer, by size. With `cpu`, it costs a tenth of the search, since 32768 takes hours."""
TUNE = {
    "": {"student.train.learning_rate": (0.01, 0.03, 0.1), "student.train.epochs": (20, 60, 200)},
    "cpu": {"student.train.learning_rate": (0.003, 0.01, 0.03, 0.1), "student.train.epochs": (10, 30)},
    "smoke": {"student.train.learning_rate": (0.01, 0.03)},
    "digits": {"student.train.learning_rate": (0.01, 0.03, 0.1)},
}


def sweep(add: grids.Add, word: str = "") -> None:
    data, size = full.parse(word)
    table = f"The graph over the training set: {full.title(data, size)}"

    def new_config(method: str, backbone: str) -> ConfigDict:
        config = full.config(data, size, backbone)
        config.method, config.seeds = method, SEEDS
        config.evaluate.training_set.enabled = True
        return config

    for backbone in ("teacher",) if size == "cpu" else ("teacher", "stem"):
        for row, method in (("cnn2gnn_off", "cnn2gnn_off"), ("gnn, off", "gnn")):
            config = new_config(method, backbone)
            config.student.graph, config.evaluate.graph_off = "off", False
            add(config, "methods", table, tune=TUNE[size], row=f"{row}, {backbone}", column="graph student")
    wide = new_config("cnn2gnn_off", "teacher")
    wide.student.hidden = WIDE[size]
    add(wide, "methods", table, tune=TUNE[size], row="cnn2gnn_off, teacher, wide", column="graph student")
