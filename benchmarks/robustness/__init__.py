"""What holds when things go wrong or by chance: kills, coverage, calibration."""
