"""A package that is needed and missing is said with how to install it, before any work is done."""

import importlib.util

import pytest

from mbq_lab import load_data, search_run, sensitivity_of_run
from mbq_lab.runs.score import score_run, transfer_run


@pytest.mark.parametrize("call, package", [
    (lambda folder: load_data("digits"), "sklearn"), (lambda folder: load_data(folder), "pyarrow"),
    (score_run, "PIL"), (score_run, "matplotlib"), (score_run, "pyarrow"), (transfer_run, "sklearn"),
    (transfer_run, "matplotlib"), (sensitivity_of_run, "matplotlib"), (search_run, "scipy"),
], ids=["digits", "parquet", "sheet", "histogram", "scores", "probe", "angles", "sensitivity", "search"])
def test_what_is_missing_is_named_first(call, package, tmp_path, monkeypatch):
    (tmp_path / "train.parquet").touch()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(ImportError, match=f"the package {package} must be installed, got none: pip install 'mbq-ke"):
        call(tmp_path)
