"""Configuration: strict, typed, and clear about what is wrong where."""
