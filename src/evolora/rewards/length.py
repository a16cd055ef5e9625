def make_brevity(*, limit: int = 20):
    def brevity(completions, **_):
        return [max(0.0, 1-len(c.split())/limit) for c in completions]
    return brevity
make_length=make_brevity
