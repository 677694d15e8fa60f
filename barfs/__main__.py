"""`python -m barfs`."""

from barfs.commands.cli import main

if __name__ == "__main__":
    main()
