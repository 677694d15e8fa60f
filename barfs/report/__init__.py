"""What is said of a machine, as text and as JSON: `info`, `barfs ls`, `barfs doctor`."""
