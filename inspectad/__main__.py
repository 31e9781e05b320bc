"""``python -m inspectad`` is ``inspectad``."""

from inspectad.cli import main

if __name__ == "__main__":
    main()
