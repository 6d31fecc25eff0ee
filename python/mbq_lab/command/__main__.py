"""The command `mbq`, which says what to install where the packages of the laboratory are missing."""

import sys


def main() -> None:
    """Run the command."""
    try:
        from .app import main as run

        run()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("mbq_lab", "mbq_train", "mbq_kernels"):
            raise
        print(f"error: the command mbq needs the package {error.name}: pip install 'mbq-kernels[lab]'", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
