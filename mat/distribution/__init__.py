"""Several GPUs or machines that share a run, by `tf.distribute`."""
