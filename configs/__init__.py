"""The built-in configs; cnn2gnn_jax/configs is a link to this folder, and the only name to import it by."""

if __name__ != "cnn2gnn_jax.configs":
    # Under two names every module would exist twice, and so would the fields that a run's fingerprint is made of.
    raise ImportError(f"the configs were imported as {__name__}: write `from cnn2gnn_jax.configs import base` instead")
