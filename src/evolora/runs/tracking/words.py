"""What the words on the screen mean."""

WORDS = {
    "generation": "one round: all individuals are measured, the best refined by RL, the next ones made of the fittest",
    "best": "the mean reward of the generation's best individual on this generation's training prompts; in the row "
    "'reward', and beside the sample, the best on validation so far",
    "mean": "that of all individuals",
    "validation": "the mean reward on validation prompts, the same in every generation and never trained on; its curve "
    "runs from the first generation to the last",
    "fitness": "what individuals are judged by, with --fitness, where RL follows another reward: then best, mean and "
    "validation are of it, and 'reward' is what the same completions earn",
    "base": "the model without an adapter; of a run that --init began, the adapter that it started from",
    "lineage": "the running average of those who were refined one after another; without one, the generation's best",
    "added": "how much fitter the best of a generation became by RL (ppo, grpo, rloo) and by evolution's operators; "
    "summed over the run in the row 'added'",
    "rate": "RL's learning rate, which is led by how far its updates move the model",
    "KL": "how far the refined have moved from the base, in nats a completion; measured where --kl-weight is above 0",
    "cut": "the share of completions that --max-new-tokens cut, clipped_ratio in the metrics",
    "equal groups": "the share of prompts whose sampled completions all earned the same: they teach RL nothing",
    "tok/s": "tokens generated a second, over the whole generation",
    "memory": "what the process, or the run on its GPU, has now",
    "left": "the time until the last generation, by what the phases have taken so far; the final test comes on top",
    "by": "the operator that made the generation's best: RL, a mutation, a crossover",
}
