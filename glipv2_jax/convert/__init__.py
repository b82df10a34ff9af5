"""Weights of other implementations into and out of this one's parameter tree, without torch."""
