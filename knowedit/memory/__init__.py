"""The MLP as a key-value memory: what a neuron answers to and what it promotes (Geva et al. 2021, 2022)."""
