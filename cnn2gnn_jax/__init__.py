"""CNN2GNN in JAX and Flax: a CNN teacher is distilled into a two-layer graph network whose graph is learned."""

__version__ = "0.1.0"
