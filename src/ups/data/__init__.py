"""Trajectories: from published HDF5 files to batches of windows, with every check in between."""
