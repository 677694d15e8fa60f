"""What is in the tree: a module a directory or kind of file, which says everything of it.

`branches.py` puts each in its place, a line each.
"""
