"""Causal tracing and patching: which states bring the answer back into a corrupted run (Meng et al. 2022)."""
