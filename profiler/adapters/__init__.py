"""Adapters for frameworks that drive the loop themselves: one file each, over the shared part in `driver`."""
