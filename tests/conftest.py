import pytest

from bookmaker import build, make_book


@pytest.fixture(scope="session")
def small_book(tmp_path_factory):
    """A small book, built once; tests read it and leave it as it is."""
    root = tmp_path_factory.mktemp("book")
    make_book(root)
    done = build(root)
    assert done.returncode == 0, done.stdout + done.stderr
    return root
