"""`python -m barfs`."""

from barfs.cli import main

if __name__ == "__main__":
    main()
