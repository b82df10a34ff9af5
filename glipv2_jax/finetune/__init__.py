"""Fine-tuning as one command: the recipe, the runs over seeds, what they gave."""
