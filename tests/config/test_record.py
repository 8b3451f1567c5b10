"""The search of benchmarks/mnist_record.py, without a run."""

import json

import pytest
from places import ROOT

from capsjax import config as configs
from capsjax.training.command_line import parse


@pytest.fixture
def search(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import mnist_record

    return mnist_record


def test_every_recipe_of_the_search_is_valid_and_differs(search, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    seen = []
    for name in search.SEARCH:
        workdir, flags = search.command(name, 1, tmp_path)
        config = parse(["train", *flags[3:]], "").config
        configs.validate(config)
        assert config.seed == 1
        assert workdir not in [other for other, _ in seen]
        assert config not in [other for _, other in seen]
        seen.append((workdir, config))


def test_a_run_with_a_line_is_skipped(search, tmp_path, monkeypatch, capsys):
    results = tmp_path / "results.json"
    lines = [{"recipe": "half", "seed": 0}, {"recipe": "half", "seed": 1}]
    results.write_text("".join(json.dumps(line) + "\n" for line in lines[:1]))
    flags = ["", "--list", "--results", str(results), "--only", "half"]
    monkeypatch.setattr("sys.argv", flags)
    search.main()
    assert capsys.readouterr().out.count("--config.seed=") == 1
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    search.main()
    assert capsys.readouterr().out == ""
