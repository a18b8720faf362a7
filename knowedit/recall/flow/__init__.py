"""Enrichment, propagation and extraction of a fact, and the knockouts that show them (Geva et al. 2023)."""
