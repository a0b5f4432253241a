"""Table 3, the ablation: InGNN and EucGNN, whose graphs are not learned, and the learned graph with both mechanisms.

    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/table3.py --out=DIR
    python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/table3.py:digits --out=DIR

The paper does not state the pair. The CNN2GNN accuracies of VGG13-VGG8 in Tables 1 and 2 are closest to those of
Table 3.
"""

from cnn2gnn_jax.configs.sweeps import grids

GRAPHS = ("inner_product", "euclidean", "learned")


def sweep(add: grids.Add, size: str = "") -> None:
    for seed in grids.seeds(size):
        for data in ("cifar100",) if size == "digits" else ("cifar100", "mini_imagenet"):
            for graph in GRAPHS:
                config = grids.base(data, size, "vgg13-vgg8")
                config.seed, config.student.graph = seed, graph
                config.evaluate.graph_off = graph == "learned"
                title = "Table 3: digits" if size == "digits" else f"Table 3, {size}".rstrip(", ")
                add(config, "ablation", title, row=graph, column=grids.title(data, size))
