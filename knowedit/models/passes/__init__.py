"""Run a prompt again from a layer: recordings, batches, sweeps in which the batch grows, the objective at their end."""
