"""Files to host-local numpy batches. Never imports glipv2_jax; TensorFlow only in `pipeline`."""
