"""Notebook filter of Quarto (`ipynb-filters` in _quarto.yml): notebook JSON in on stdin, out on stdout.
"""
import json
from pathlib import Path
import sys

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
from forms import for_quarto

if __name__ == "__main__":
    json.dump(for_quarto(json.load(sys.stdin)), sys.stdout, ensure_ascii=False)
