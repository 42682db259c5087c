"""Pretext tasks: unlabelled photo -> attributes with known truth -> text cues, scores and suggestions."""
