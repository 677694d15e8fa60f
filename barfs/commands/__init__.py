"""The commands that a user types, a module for each. Only here something is printed."""
