"""Registers and fields by name: maps, and what reading and writing them means.

Nothing here touches BARs or memory, nor speaks FUSE. devices.py alone reads config space.
docs/registers.md describes the format of a map.
"""
