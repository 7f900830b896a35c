"""The commands of `sameriver`, one file per group; none loads Beam or TensorFlow before it is needed."""
