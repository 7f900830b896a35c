"""Model server and client that speak the API of TensorFlow Serving."""
