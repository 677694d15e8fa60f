"""Making, serving and ending a mount. Besides fs.py and requests/unneeded.py this alone knows
pyfuse3.
"""
