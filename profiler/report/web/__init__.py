"""The report as one HTML file, which needs no network, and reads well without its script and its style."""
