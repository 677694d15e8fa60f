"""`python -m barfs`."""

from barfs.commands.start import barfs

if __name__ == "__main__":
    barfs()
