"""Plain data about a run: timings, readings, energy, histograms, vocabulary.

Nothing here measures, stores or sends.
"""
