"""How bytes are reached: a request becomes checked accesses, and only here is memory mapped.

`contract.py` says in pure functions which accesses a request is made of. `apertures.py` holds the
spans that can be accessed. `files.py` holds files that stay open. `_mmio.c` makes the loads and
stores.
"""
