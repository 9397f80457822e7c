"""What travels: requests and the events of an answer."""
