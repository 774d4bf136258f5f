"""The program: `equitune`, and `python -m equitune`. A Ctrl-C is obeyed while the rest is still imported."""

from typing import NoReturn

from equitune import interrupts


def main() -> NoReturn:
    """Run the program."""
    interrupts.install()
    try:
        from equitune import cli
    except BaseException:
        if not interrupts.received():  # an import that is interrupted may fail in any way
            raise
        interrupts.leave()
    cli.main()


if __name__ == "__main__":
    main()
