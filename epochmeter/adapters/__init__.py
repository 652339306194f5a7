"""Adapters for frameworks that drive the loop themselves, each handed on from `profiler.adapters`."""
