"""The command-line tool."""

import os
import sys

from . import tool


def main():
    """Becomes the tool."""
    os.execv(tool(), ["replicated", *sys.argv[1:]])


if __name__ == "__main__":
    main()
