"""The list of other people's code, which needs neither their code nor PyTorch."""

from places import ROOT

from capsjax import ROUTINGS


def test_the_list_has_a_clone_for_every_pair_and_pairs_have_algorithms(
    monkeypatch, capsys
):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import against_authors

    assert against_authors.main(["--list"]) == 0
    _, _, *rows = capsys.readouterr().out.splitlines()
    for row, pair in zip(rows, against_authors.PAIRS, strict=True):
        assert pair.routing in ROUTINGS
        assert row.startswith(f"| {pair.routing} | {pair.clone.address} |")
