"""How numbers are multiplied on a device: float32 with weights in bfloat16, and attention with few heads of keys."""
