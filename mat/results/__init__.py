"""What a training run leaves behind: result directory, checkpoints, TensorBoard events, summary."""
