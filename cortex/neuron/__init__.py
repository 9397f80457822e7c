"""`cortex neuron`: the daemon of one GPU host."""
