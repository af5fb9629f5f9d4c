"""What the benchmark scripts share."""
import json
from pathlib import Path
import platform
import sys

import pytest

import rbmdiff

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import record

SCRIPTS = sorted(p for p in Path(record.__file__).parent.glob("*.py")
                 if p.stem not in ("record", "peers"))


def test_header_tells_command_unit_and_versions(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/elsewhere/digits.py", "--resume", "--out", "two words.json"])
    header = record.header("nats", "numpy", "no-such-package", without=("--resume",))
    assert list(header) == ["command", "unit", "versions"]
    assert (
        header["command"] == "python benchmarks/digits.py --out 'two words.json'"
        and header["unit"] == "nats"
    )
    assert list(header["versions"]) == ["python", "torch", "numpy", "rbmdiff"]
    assert header["versions"]["python"] == platform.python_version()
    assert header["versions"]["rbmdiff"] == rbmdiff.__version__


def test_arguments():
    parser = record.arguments("What it does.\n\n    like this", Path("results/x.json"), threads=3)
    assert vars(parser.parse_args([])) == {"out": Path("results/x.json"), "threads": 3}
    assert vars(record.arguments("", Path("x.json")).parse_args(["--out", "y"])) == {"out": Path("y")}
    assert "\n    like this\n" in parser.format_help()


def test_write_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new/result.json"
    record.write(path, {"a": [1, 2]})
    assert path.read_text() == json.dumps({"a": [1, 2]}, indent=1) + "\n"
    with pytest.raises(TypeError): record.write(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": [1, 2]} and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_script_uses_it(script):
    text = script.read_text()
    assert "from record import" in text
    assert not [word for word in ("ArgumentParser(", "replace_file", "python_version()") if word in text]
