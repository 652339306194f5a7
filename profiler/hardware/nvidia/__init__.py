"""NVIDIA GPUs through NVML: the library, the cards, the fields, the choice of cards."""
