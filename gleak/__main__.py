"""The `gleak` command. What it does is in `gleak.study.cli`, which needs the extra `study`."""

import sys

from gleak.extras import extra


def main() -> None:
    """Run the command; without the extra, one line that says what is missing, and status 1."""
    try:
        with extra("study"):
            from gleak.study.cli import entry
    except ModuleNotFoundError as error:
        sys.exit(f"gleak: {error}")
    entry()


if __name__ == "__main__":
    main()
