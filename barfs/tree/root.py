"""The root of the tree."""

from typing import Final

from barfs.nodes import DIRECTORY, Attributes, Branch, Kind, Node, Share, Type

ROOT: Final = Kind("root", Type.DIRECTORY, share=Share.READ, steady=True)


class Root(Branch):
    """The root directory. Other branches have the names in it."""

    kinds = (ROOT,)

    def missing(self, directory: Node, name: str) -> str:
        del directory
        return f"there is no {name!a}; a device is <vendor>:<device>, lower case"

    def path(self, node: Node) -> str:
        del node
        return "/"

    def attributes(self, node: Node) -> Attributes:
        del node
        return DIRECTORY
