"""A stand-in for Lightly's data selection: the same contract, a smaller head."""
