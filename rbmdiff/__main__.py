"""`python -m rbmdiff` is the command `rbmdiff`."""
import sys

from rbmdiff.practice.cli import main

if __name__ == "__main__":
    sys.argv[0] = "rbmdiff"     # the name in messages
    sys.exit(main())
