"""Commands that look: trace, lens, recall, memory, mlp, neuron."""
