"""The command ``capsjax``, which is ``python -m capsjax`` too."""

import importlib

import jax
import pytest

from capsjax.__main__ import COMMANDS, main


def test_help_lists_every_command(capsys):
    assert main([]) == main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in COMMANDS)


def test_the_version_names_what_a_report_of_an_error_needs(capsys):
    assert main(["--version"]) == 0
    printed = capsys.readouterr().out
    assert f"jax {jax.__version__}\n" in printed
    for name in ("capsjax ", "python ", "devices ", "cache "):
        assert f"\n{name}" in f"\n{printed}"


def test_an_unknown_command_is_one_line_with_all_commands(capsys):
    assert main(["trian"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        "capsjax: error: 'trian' is no command: choose of train, evaluate, predict, "
        "report, explore, export\n"
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_gets_its_arguments(name, monkeypatch):
    seen = []
    module = importlib.import_module(f"capsjax.{name}")
    monkeypatch.setattr(module, "main", lambda argv: seen.append(argv) or 7)
    assert main([name, "--one", "two"]) == 7
    program = ["capsjax train"] if name == "train" else []
    assert seen == [[*program, "--one", "two"]]
