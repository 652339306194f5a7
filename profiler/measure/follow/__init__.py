"""Follow a training loop by the events of torch, without changes to the loop."""
