"""``python -m vovnet.cli``: the command ``vovnet``."""

from vovnet.cli import main

if __name__ == "__main__":
    main()
