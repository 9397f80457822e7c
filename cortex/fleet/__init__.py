"""What is: models, devices and nodes."""
