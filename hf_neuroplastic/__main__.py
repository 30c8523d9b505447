"""Entry point of `hf-neuroplastic` and `python -m hf_neuroplastic`."""

import sys


def main() -> None:
    """Runs the command line, or says what to install for it."""
    try:
        from .cli import app
    except ImportError as error:
        print(f'error: the command line needs {error.name}: pip install "hf-neuroplastic[demo]"', file=sys.stderr)
        raise SystemExit(2) from None
    app()


if __name__ == "__main__":
    main()
