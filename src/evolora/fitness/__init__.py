"""What judges an individual where its completions' rewards do not: the built-in ones, and how one's own is called."""
