"""Benchmarks: `edits` and `neurons` are studies, `runs` is the engine that runs and resumes any study."""
