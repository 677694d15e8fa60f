"""Who read and wrote what: the records, the lines of `log`, and the same lines on disk."""
