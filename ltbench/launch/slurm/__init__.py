"""Cells to SLURM: arrays that are submitted and left alone, and what runs inside them."""
