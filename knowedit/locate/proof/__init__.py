"""Whether located neurons make the answer: what they do on held-out prompts, beside random ones.

effect         probabilities with the neurons taken away and doubled, and the same of all that stands beside them
draws          random sets matched by layer, or by layer and activation
proof          `knowedit.prove`: the effects of one fact or of many, with intervals and p-values
neuron_kinds   what a neuron answers to, and the known facts that tell it
"""
