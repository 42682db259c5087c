"""Held-out evaluation of a checkpoint or a bundle: degraded copies, attributes, ratings, captions."""
