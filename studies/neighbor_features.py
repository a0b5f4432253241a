"""Does it pay to send features over the edges of the training-set graph, in place of labels?

    python -m studies.neighbor_features WORKDIR OUT.jsonl

WORKDIR is the workdir of a run; see `studies.student.load`. Over the teacher's stored features x, students without the
paper's graph are trained, each with five seeds:

    alone               the inputs are x
    neighbor features   the inputs are x and P x, the mean features of the nearest training images with the weights of
                        Eq. 3

P has cosine distances, and an image is never its own neighbor. The sparsity s is chosen on held-out images, with the
first seed. A row also has the accuracy of each student with the training-set graph and labels as signals.
"""

import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from cnn2gnn_jax import neighbors
from cnn2gnn_jax.evaluation import choice
from studies import student as students
from studies import trained_graph
from studies.student import Images, Student

SPARSITIES = (5, 10, 30)


def with_neighbor_features(student: Student, sparsity: int) -> Student:
    """The same images with [x, P x], (N, 2 F), as features of the backbone."""
    raw = jnp.asarray(student.train.embedded.features["backbone"])
    settings = neighbors.Settings("backbone", "features", sparsity, 0.0, 1.0)
    bank = neighbors.make_bank(raw, jnp.asarray(student.train.labels), raw, settings, "float32")

    def extended(images: Images, self_columns: np.ndarray | None = None) -> Images:
        x = images.embedded.features["backbone"]
        nearest = choice.search(bank, x, sparsity, self_columns)
        features = {"backbone": np.concatenate([x, neighbors.weighted_sum(bank.signals, nearest)], axis=1)}
        return images._replace(embedded=images.embedded._replace(features=features))

    return student._replace(
        train=extended(student.train, np.arange(len(student.train.labels))),
        holdout=extended(student.holdout),
        test=extended(student.test),
    )


def rows(student: Student) -> Iterator[dict[str, Any]]:
    """Yields the rows of the study."""
    setting, best = trained_graph.Setting("retrieved"), student
    best_sparsity, best_accuracy = 0, -1.0
    for sparsity in SPARSITIES:
        candidate = with_neighbor_features(student, sparsity)
        accuracy = students.accuracy_without_graph(trained_graph.fit(candidate, setting, seed=0).holdout)
        yield {"study": "candidate", "sparsity_of_features": sparsity, "holdout_accuracy_without_graph": accuracy}
        if accuracy > best_accuracy:
            best, best_sparsity, best_accuracy = candidate, sparsity, accuracy
    for arm, sparsity, images in (("alone", 0, student), ("neighbor features", best_sparsity, best)):
        for seed in range(trained_graph.SEEDS):
            for row in trained_graph.measure(images, setting, seed):
                yield {"study": "neighbor features", **row, "arm": arm, "sparsity_of_features": sparsity}


if __name__ == "__main__":
    trained_student = students.load(pathlib.Path(sys.argv[1]))
    students.write(pathlib.Path(sys.argv[2]), trained_student, rows(trained_student))
