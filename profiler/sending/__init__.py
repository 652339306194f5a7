"""Everything between a finished measurement and the exporters: consent, notices, destinations, delivery, proof."""
