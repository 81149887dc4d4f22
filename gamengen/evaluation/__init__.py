"""Fidelity: how near a checkpoint is to the real game, on episodes it never saw."""
