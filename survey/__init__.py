"""What ordinary tools read and write when they are used on a BAR of registers: docs/tools.md."""
