"""How a fact is recalled: causal tracing, what layers predict, and the flow from the subject to the answer."""
