"""Boxes for image-text pairs that have none: what a grounding model is trained on beside its gold data."""
