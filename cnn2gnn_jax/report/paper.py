"""The figures of the paper's Tables 1 to 3: means over ten runs; the paper gives no standard deviations."""

from cnn2gnn_jax import networks

_CIFAR100 = """
teacher  62.19 63.91 65.19 66.00 58.48 59.25 59.16 55.32 55.32
kd       62.78 62.25 62.32 62.61 57.15 57.97 57.72 54.86 55.03
fitnets  62.38 60.73 62.34 61.89 57.06 57.90 57.63 55.04 55.93
at       62.19 60.46 62.61 62.28 57.10 57.73 58.02 54.04 55.35
sp       62.24 61.94 61.94 62.82 56.79 57.82 56.84 54.14 54.61
vid      62.96 61.58 62.44 63.03 57.15 58.21 58.32 57.02 56.06
rkd      63.01 63.58 63.53 64.03 57.34 58.08 59.13 56.06 57.46
pkt      62.65 61.89 62.13 62.17 57.37 56.09 56.66 55.14 55.27
ab       57.23 62.14 63.14 62.00 56.75 57.50 56.47 53.58 55.01
ft       62.04 63.04 62.31 62.41 57.57 57.86 57.68 54.38 54.95
crd      57.95 58.00 57.56 57.57 51.03 51.95 51.79 51.30 52.84
ccd      63.17 64.06 64.41 64.03 58.95 58.50 58.32 62.26 65.05
dkd      64.15 65.15 63.72 64.43 58.97 57.78 57.19 61.16 64.30
gnn      60.21 61.01 60.28 60.06 56.40 55.84 56.36 60.76 60.76
cnn2gnn  65.13 65.53 64.43 64.67 59.33 58.68 58.57 65.58 65.36
"""
_MINI_IMAGENET = """
teacher  45.11 49.70 48.25 50.35 46.50 46.30 45.34 51.75 51.75
kd       45.07 45.39 46.18 41.72 43.46 42.05 41.65 41.52 42.43
fitnets  45.69 46.11 45.76 45.35 43.54 41.89 40.96 42.79 43.96
at       45.86 45.54 45.18 46.88 43.27 42.07 41.92 43.02 42.63
sp       45.55 46.39 45.81 45.95 42.68 42.30 41.91 41.97 42.05
vid      47.24 45.23 45.87 45.77 42.81 42.20 42.31 42.82 43.46
rkd      47.23 49.30 49.12 49.63 43.55 42.92 41.35 43.08 44.02
pkt      45.66 46.09 46.05 45.84 42.65 41.81 41.21 42.04 42.30
ab       41.37 46.14 45.22 45.68 43.66 40.55 38.31 43.10 43.71
ft       46.50 45.01 45.75 46.33 42.74 41.57 41.36 42.93 42.77
crd      46.03 41.73 38.91 41.75 41.18 40.79 40.40 41.93 41.49
ccd      48.64 49.04 49.84 49.44 43.68 43.60 41.75 51.07 51.79
dkd      47.69 48.35 47.70 46.86 45.50 45.23 44.27 52.11 50.41
gnn      44.27 43.84 43.87 44.02 38.89 38.40 38.27 42.36 42.36
cnn2gnn  57.94 55.04 53.44 60.64 48.88 46.57 46.16 53.09 52.72
"""


def _parse(text: str) -> dict[tuple[str, str], float]:
    rows = (line.split() for line in text.split("\n") if line)
    return {
        (row, pair): float(value) for row, *values in rows for pair, value in zip(networks.PAIRS, values, strict=True)
    }


METHODS = {"Table 1: CIFAR-100": _parse(_CIFAR100), "Table 2: Mini-ImageNet": _parse(_MINI_IMAGENET)}
"""Accuracy in percent by table, row (a method, or `teacher`) and pair."""
ROWS = tuple(dict.fromkeys(row for row, _ in METHODS["Table 1: CIFAR-100"]))
"""The rows in their order."""

ABLATION = {
    ("InGNN", "CIFAR-100"): (7.82, 2828.11),
    ("EucGNN", "CIFAR-100"): (6.15, 2824.16),
    ("One by one", "CIFAR-100"): (59.77, 4999.39),
    ("Batch by batch", "CIFAR-100"): (58.57, 2797.42),
    ("InGNN", "Mini-ImageNet"): (6.17, 2567.47),
    ("EucGNN", "Mini-ImageNet"): (5.82, 2469.68),
    ("One by one", "Mini-ImageNet"): (48.85, 3214.45),
    ("Batch by batch", "Mini-ImageNet"): (49.07, 2307.49),
}
"""Table 3 by row and data set: accuracy in percent, and seconds; the paper does not say which time it is."""
