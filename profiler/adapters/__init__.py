"""Frameworks that drive the loop themselves: one file each, and what they have in common in `driver`."""
