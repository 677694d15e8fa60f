"""Making, serving and ending a mount. Besides fs.py only this package knows pyfuse3."""
