"""How numbers are multiplied: half-precision weights as float32, and attention with few heads of keys."""
