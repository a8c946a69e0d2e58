"""Accuracies in percent, other metrics by name; results that do not name theirs are of an accuracy."""

import pytest

from nni_fairdarts.experiment import analysis_table, summary
from nni_fairdarts.metrics import word, written
from nni_fairdarts.trained import Evaluation


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (None, "accuracy 97.22%"), ("val_acc", "accuracy 97.22%"), ("val_accuracy", "accuracy 97.22%"),
        ("val_f1", "val_f1 0.972222"), ("val_accelerations", "val_accelerations 0.972222"),
    ],
)  # fmt: skip
def test_as_what_a_metric_is_shown(name, text):
    assert f"{word(name)} {written(0.9722222238779068, name)}" == text


def test_of_no_accuracy_there_are_no_percentages():
    """The lines of a run, of an analysis and of an evaluation; and as they were of files of before."""
    both = {"folder": "runs/a", "nni_sample": {}}
    searched = {**both, "supernet_accuracy": 31.4159265, "discretization_gap": -0.25}
    retrained = {**both, "test_accuracy": 2.5, "parameters": 1000, "multiply_adds": 2000}
    analysed = {"dominant_skips": {}, "entropy": {}, "epochs": [], "curvature": None}
    analysed |= {"accuracy": 31.4159265, "discretization_gap": -0.25}
    lines = [
        "supernet val_psnr   31.4159 (validation)",
        "discretisation gap  -0.25 (lost when gates are rounded)",
        "derived val_psnr    2.5 (test), 1,000 parameters, 2,000 multiply-adds",
    ]
    named = {"metric": "val_psnr"}
    assert summary(searched | named, retrained | named).splitlines()[:3] == lines
    assert summary(retrained=retrained | named).splitlines()[0] == lines[2]
    assert analysis_table(analysed | named).splitlines() == lines[:2]
    before = [text.replace("val_psnr", "accuracy") for text in lines]
    before = [before[0].replace("31.4159", "3141.59%"), before[1].replace("-0.25", "-25.00%")]
    assert summary(searched, retrained).splitlines()[:2] == analysis_table(analysed).splitlines() == before
    evaluated = Evaluation(31.4159265, None, None, 10, 5, 1.0, "cpu")
    assert str(evaluated).startswith("accuracy            3141.59%\n")
    evaluated = Evaluation(31.4159265, None, None, 10, 5, 1.0, "cpu", metric="val_psnr")
    assert str(evaluated).startswith("val_psnr            31.4159\n")
