"""The program's entry: takes secrets out of the command line before anything that takes time is imported."""

from __future__ import annotations

from mountkit.run import hidden


def main() -> None:
    """Entry point of the console script and of `python -m mountkit`."""
    hidden.hide()
    from mountkit import cli

    cli.main()


if __name__ == "__main__":
    main()
