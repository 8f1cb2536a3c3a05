"""Where the command ``hpcrl`` and ``python -m hpcrl`` begin."""

import sys


def main() -> None:
    try:
        _main()
    except KeyboardInterrupt:  # while it starts
        sys.exit(130)


def _main() -> None:
    if sys.argv[1:2] == ["train"]:
        # Before the slow imports: a TERM during them would end the rank, with the wrong exit code.
        from hpcrl.world.stop import install_early

        install_early()
    from hpcrl.cli import main as command

    command()


if __name__ == "__main__":
    main()
