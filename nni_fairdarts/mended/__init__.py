"""NNI's own one-shot strategies as they are used here, recorded and repaired; random search, made of one of them."""
