"""The page on the environment says of every stored result where it comes from."""
import json
import sys

from bookmaker import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from stored_results import HEAD, PAGE, TABLE, readers, runs, table


def test_the_page_lists_the_stored_results_as_they_are():
    found = TABLE.findall(PAGE.read_text("utf8"))
    assert found == [table(ROOT)], "run: python scripts/stored_results.py"
    assert found[0].count("\n") > HEAD.count("\n") + 10


def test_another_device_changes_the_table(tmp_path):
    stored = {"command": "python a.py", "versions": {"torch": "2.0"}, "rows": [{"value": 1.0}]}
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    (tmp_path / "nbs/room").mkdir(parents=True)
    cell = {"cell_type": "code", "source": ['x = load("benchmarks/results/a.json")']}
    (tmp_path / "nbs/room/x.ipynb").write_text(json.dumps({"cells": [cell]}))
    (tmp_path / "benchmarks/results/a.json").write_text(json.dumps(stored))
    link = "[room/x](room/x.ipynb)"
    assert table(tmp_path) == HEAD + f"| `a.json` | `python a.py` | cpu | 2.0 | {link} |\n"
    stored["rows"] = [{"device": "card", "torch": "3.0"}]
    (tmp_path / "benchmarks/results/a.json").write_text(json.dumps(stored))
    assert table(tmp_path) == HEAD + f"| `a.json` | `python a.py` | card | 3.0 | {link} |\n"


def test_every_run_is_named_once():
    made = [{"command": "c", "device": "card", "versions": {"torch": "1"}},
            {"command": "d", "device": "cpu", "versions": {"torch": "2"}}]
    assert runs({"made": made, "rows": [1, 2]}) == [("c", "card", "1"), ("d", "cpu", "2")]
    assert runs({"command": "c", "cpus": 2, "cpu": "fast", "full": {"command": "d"}}) == [
        ("c", "fast, 2 cores", ""), ("d", "fast, 2 cores", "")]


def test_readers_are_the_chapters_whose_code_reads_the_file():
    assert {"bridge/comparison", "bridge/recovery"} <= set(readers(ROOT, "recovery"))
    assert "bridge/gumbel" not in readers(ROOT, "recovery")
    assert readers(ROOT, "nothing") == []
