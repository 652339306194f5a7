"""Follow a training loop from what torch announces, without changes to the loop."""
