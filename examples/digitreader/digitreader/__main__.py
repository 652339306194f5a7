"""``python -m digitreader``."""

from digitreader.cli import main

main()
