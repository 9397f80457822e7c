"""`cortex serve`: one address for the whole fleet."""
