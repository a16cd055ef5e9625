"""The runs that there are: what they are called, how they stand, and their end."""
