def make_chrf():
    from evolora.rewards.text import similarity
    return similarity
