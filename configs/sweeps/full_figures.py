"""Figures 4 and 6 and Table 3 on all training images. Node features are the teacher's stored features.

    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/full_figures.py:cifar100 --out=DIR
    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/full_figures.py:mini_imagenet --out=DIR \
        --config.data.manual_dir=DIR
    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/full_figures.py:cifar100-cpu --out=DIR

In Figure 6 the sparsity s is 50, or half of the batch size if that is smaller.
"""

from ml_collections import ConfigDict

from cnn2gnn_jax.configs.sweeps import figure4, full, grids, table3

BATCH_SIZES = (20, 50, 100, 200, 500)

WORDS = full.WORDS


def sweep(add: grids.Add, word: str = "") -> None:
    data, size = full.parse(word)
    place = {"panel": full.title(data, size), "line": "teacher's features"}
    seeds = 1 if size else 3

    def new_config() -> ConfigDict:
        config = full.config(data, size)
        config.seeds, config.evaluate.graph_off = seeds, False
        return config

    for temperature in figure4.TEMPERATURES:
        config = new_config()
        config.distill.temperature = float(temperature)
        add(config, "curve", "Figure 4 at full size, temperature", x=temperature, **place)
    for sparsity in figure4.SPARSITIES:
        config = new_config()
        # The 359 test images of digits are divided into batches of 89, which allow s = 88 at most.
        config.student.sparsity = sparsity = 85 if (size, sparsity) == ("digits", 90) else sparsity
        add(config, "curve", "Figure 4 at full size, sparsity", x=sparsity, **place)
    for batch_size in BATCH_SIZES:
        config = new_config()
        config.student.train.batch_size = config.evaluate.batch_size = batch_size
        config.student.sparsity = min(50, batch_size // 2)
        add(config, "curve", "Figure 6 at full size, batch size", x=batch_size, **place)
    for graph in table3.GRAPHS:
        config = new_config()
        config.student.graph, config.evaluate.graph_off = graph, graph == "learned"
        add(config, "ablation", f"Table 3 at full size: {full.title(data, size)}", row=graph, column=place["panel"])
