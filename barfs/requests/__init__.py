"""The requests of open files: who may make them, where they are made, and what is recorded."""
