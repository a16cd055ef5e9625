"""What a run says of its result."""
