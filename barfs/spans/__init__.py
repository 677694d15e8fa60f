"""BARs and physical ranges behind open files: opening them, and what their requests do."""
