"""Commands that talk to a running fleet; one command a file."""
