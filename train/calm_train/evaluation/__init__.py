"""Held-out evaluation of a checkpoint or a bundle: ranking of spoiled copies, attributes, ratings, captions."""
