"""``python -m m6proxy`` is the ``m6proxy`` command."""

from m6proxy.cli.main import main

if __name__ == "__main__":
    main()
