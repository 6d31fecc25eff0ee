"""`python -m mbq_store inspect FILE`: print what a store holds."""

import argparse
import sys

from .errors import StoreError
from .store import open


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mbq_store", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("inspect", help="print what a store holds").add_argument("file")
    try:
        with open(parser.parse_args(arguments).file) as store:
            print(store.summary())
    except StoreError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
