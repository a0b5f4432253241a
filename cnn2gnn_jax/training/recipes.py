"""Training recipes: the hyperparameters that the field `recipe` of a `train` section selects."""

from typing import Any

RECIPES: dict[str, dict[str, Any]] = {
    # Section 4.1 of the paper, which does not give momentum and weight decay: these are those of `crd`.
    "paper": {
        "epochs": 200,
        "batch_size": 100,
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "constant",
        "milestones": (),
        "milestone_factor": 1.0,
        "augment": False,
    },
    # The recipe that is common for CIFAR-100 (Tian et al., 2020).
    "crd": {
        "epochs": 240,
        "batch_size": 64,
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "step",
        "milestones": (150 / 240, 180 / 240, 210 / 240),
        "milestone_factor": 0.1,
        "augment": True,
    },
    # For a tenth of the epochs: the learning rate rises at first and falls to 0 at the end (Smith and Topin, 2019).
    "fast": {
        "epochs": 15,
        "batch_size": 100,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "one_cycle",
        "milestones": (),
        "milestone_factor": 1.0,
        "augment": True,
    },
}
