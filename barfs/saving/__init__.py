"""Saving a machine: its facts, and what somebody asked for of its BARs, in one tar."""
