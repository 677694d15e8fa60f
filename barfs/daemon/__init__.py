"""Making, serving and ending a mount. Besides it only fs.py and requests/unneeded.py know pyfuse3."""
