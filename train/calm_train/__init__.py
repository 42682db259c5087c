"""Training CALM: the PyTorch model, its self-supervised pretext tasks, and the trainer."""
