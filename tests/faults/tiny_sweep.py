"""The sweep that is run under faults: two cells that share a teacher."""

from tests.faults import tiny


def sweep(add, size=""):
    del size
    for seed in range(2):
        config = tiny.get_config()
        config.seed = seed
        add(config, "methods", "Table", row=f"seed {seed}", column="resnet8-resnet8")
