"""How fast barfs is, next to a small C daemon and to what one would do without either."""
