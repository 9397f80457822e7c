"""The text side of a model: requests to token ids, token ids to what the model says."""
