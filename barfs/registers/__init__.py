"""Registers and fields by name: maps, and what reading and writing them means.

Nothing here touches BARs or memory, and nothing speaks FUSE. Only devices.py reads config space.
docs/registers.md describes the format of a map.
"""
