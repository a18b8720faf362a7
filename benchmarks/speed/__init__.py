"""How fast: each beside its plain loop, alternated in one run."""
