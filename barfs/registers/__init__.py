"""Registers and fields by name: maps, and what reading and writing them means.

Nothing here touches hardware or speaks FUSE. docs/registers.md describes the format of a map.
"""
