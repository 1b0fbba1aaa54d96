"""What a network's tokens hold."""
