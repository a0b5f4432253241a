"""Tests of the tables of methods by pairs: means, ranks, arrows and paired differences of records made by hand."""

from cnn2gnn_jax.report import methods
from cnn2gnn_jax.report.observations import observe
from tests.report.conftest import cells, record


def test_ranks_and_arrows_compare_displayed_values(made):
    actual = cells(made[0])
    assert {name: cell.rank for name, cell in actual.items() if cell.rank} == {"SP": 1, "AT": 2}
    assert {name: cell.arrow for name, cell in actual.items() if cell.arrow} == {"SP": 1, "AT": -1, "VID": -1}
    assert actual["RKD"].text == actual["KD"].text == "52.00 ± 2.00"


def test_cells_with_fewer_seeds_give_their_number(made):
    table, differences = made
    assert cells(table)["AT"].text == "53.00 (n = 1)" and cells(differences)["AT"].text == "-1.00 (n = 1)"
    assert cells(differences)["SP"].text == "+10.00 [+10.00, +10.00]" and "KD" not in cells(differences)
    assert "over 3 seeds, unless n is given, of the difference" in differences.notes[0]


def test_a_caption_names_images_recipe_and_teachers_of_its_records(made):
    assert "50 test images of digits (20 to 100 training images, 10 classes)" in made[0].notes[0]
    assert "Recipe paper, last epoch" in made[0].notes[0] and made[0].notes[0].endswith(", 2 teachers.")


def test_differences_are_from_kd_without_the_training_set_graph():
    records = [record("kd", {0: 50.0, 1: 52.0}), record("dkd", {0: 51.0, 1: 53.5})]
    for made in records:
        made["accuracies"] += [
            {**entry, "mechanism": "training_set", "accuracy": entry["accuracy"] + 4} for entry in made["accuracies"]
        ]
    table, differences = methods.tables(observe(records, "methods"))
    assert {heading: cell.value for heading, cell in cells(differences).items()} == {
        "KD, training set": 4.0, "DKD": 1.25, "DKD, training set": 5.25,
    }  # fmt: skip
    arrows = {heading: cell.arrow for heading, cell in cells(table).items() if heading != "Teacher"}
    assert arrows == {"KD": 0, "KD, training set": 1, "DKD": 1, "DKD, training set": 1}
