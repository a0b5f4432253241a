"""NumPy implementations of the paper's formulas, with which the tests compare the package."""

import numpy as np


def relu(x):
    return np.maximum(x, 0)


def eq3(distances, sparsity):
    """Applies Eq. 3 to each row of distances, (..., N). Columns at an infinite distance get no weight.

    If the s + 1 smallest distances of a row are equal, all columns at that distance have the same weight.
    """
    cut = np.sort(distances, axis=-1)[..., [sparsity]]
    is_tied = distances.min(axis=-1, keepdims=True) == cut
    slack = np.where(is_tied, distances == cut, relu(cut - distances))
    return slack / slack.sum(axis=-1, keepdims=True)


def normalized_adjacency(adjacency, self_loops):
    """Returns D^(-1/2) A D^(-1/2), where A + I replaces A if there are self-loops."""
    looped = adjacency + self_loops * np.eye(len(adjacency))
    root = np.diag(looped.sum(-1) ** -0.5)
    return root @ looped @ root
