"""What MLPs are made of and do: anatomy, gates, geometry, imputation, and their share of parameters and precision."""
