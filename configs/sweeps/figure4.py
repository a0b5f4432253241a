"""Figure 4: accuracy as a function of the temperature, and of the sparsity s of Eq. 3.

python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/figure4.py --out=DIR
python -m cnn2gnn_jax.sweep --sweep=configs/sweeps/figure4.py:digits --out=DIR
"""

from cnn2gnn_jax.configs.sweeps import grids

TEMPERATURES = (1, 4, 8, 16, 32, 64)
SPARSITIES = (10, 30, 50, 70, 90)


def sweep(add: grids.Add, size: str = "") -> None:
    for config, place in grids.curves(size):
        for temperature in TEMPERATURES:
            config.distill.temperature = float(temperature)
            add(config, "curve", "Figure 4, temperature", x=temperature, **place)
        config.distill.temperature = None
        for sparsity in SPARSITIES:
            # The 359 test images of digits are divided into batches of 89, which allow s = 88 at most.
            config.student.sparsity = sparsity = 85 if (size, sparsity) == ("digits", 90) else sparsity
            add(config, "curve", "Figure 4, sparsity", x=sparsity, **place)
