"""Options of the loop."""

from typing import ClassVar, Literal

from evolora.options import Seeded, option
from evolora.population.options import PopulationOptions, RolloutOptions


class LoopConfig(Seeded, RolloutOptions, PopulationOptions):
    """Options of the loop: how a generation is measured, who is refined, and who wins in the end."""

    head: ClassVar[str] = "gens"

    gens: int | None = option(
        None, "most generations; default 20, or as many as fit into the budget where one is given", common=True, ge=1
    )
    fitness: str | None = option(
        None,
        "what individuals are judged by, where RL follows another --reward: a reward, or, of all that one writes, "
        "macro-f1, corpus-bleu, worst-group, pass-at-k, agreement, program, or a function that returns one number "
        "(docs/rewards.md); default: the reward",
        common=True,
    )
    fitness_samples: int = option(
        1, "sampled completions of each prompt that an individual is judged by; 1: its greedy one", ge=1
    )
    group_column: str | None = option(None, "the data's column of groups, for --fitness worst-group")
    eval_prompts: int = option(16, "training prompts that measure the fitness of a generation", common=True, ge=1)
    until: float | None = option(
        None,
        "end the run after the generation whose best on validation is worth this much; default none, for a single "
        "--prompt with its --target 1",
    )
    patience: int | None = option(
        None, "end the run after so many generations without a better one on validation", ge=1
    )
    rare_hits: bool = option(
        True,
        "where nothing that the base writes greedily is paid, choose among equals by how probable what is paid is "
        "(--no-rare-hits: by the reward alone)",
    )
    first_samples: int = option(
        2048,
        "where nothing that the base writes greedily is paid, so many completions are sampled at most, before anything "
        "is learned, to find the first that are; they take two fifths of a budget at most; 0: none",
        ge=0,
    )
    racing: float | None = option(
        None,
        "let individuals race: after each --racing-block prompts those leave that lose at this error level; none: all "
        "meet all prompts",
        gt=0,
        lt=1,
    )
    racing_block: int = option(8, "prompts between two looks at a race", ge=1)
    remember: bool = option(
        True, "do not ask an unchanged individual again on an unchanged prompt (--no-remember: for rewards that vary)"
    )
    refine: int = option(1, "how many of the best are refined, side by side", common=True, ge=1)
    refine_whom: Literal["lineage", "best"] = option(
        "best",
        "who is refined: the one that was refined last, until another is clearly better (lineage), or the generation's "
        "--refine best (best)",
    )
    accept: Literal["better", "always"] = option("better", "which refined individuals enter")
    refined_scale: Literal["keep", "step"] = option(
        "keep", "mutation scale of the refined: keep, their parent's, or step, at most the size of their refinement"
    )
    validation_prompts: int = option(
        64, "validation prompts that a generation's best is checked on; the finalists meet all", ge=1
    )
    finalists: int = option(4, "individuals that meet the whole validation split at the end", ge=1)
    soup: int = option(
        0,
        "finalists whose weights are averaged into one that wins unless the best beats it by more than a standard "
        "error, or rewards vary; 0: no soup",
        ge=0,
    )
    kept: bool = option(
        True,
        "at the end measure what the winner has kept of the base: its drift on neutral sentences and the KL on what it "
        "samples, in about 2% of the run's operations",
    )
    pass_samples: int = option(
        0,
        "samples of each test prompt, by base and winner at temperature 1, for pass@1 and pass@k of as many; 0: none",
        ge=0,
    )
    vote: int = option(
        1,
        "finalists that vote on the test split, by plurality of their completions; 1: no vote",
        ge=1,
    )

    def go_together(self) -> None:
        super().go_together()
        if self.group_column is not None and "worst-group" not in str(self.fitness):
            raise ValueError(f"--group-column {self.group_column}: expected --fitness worst-group beside it")
        if self.racing is not None and self.fitness_samples > 1:
            raise ValueError(
                f"--racing {self.racing} with --fitness-samples {self.fitness_samples}: expected none, individuals "
                "race by one completion of each prompt"
            )
        if self.refine_whom == "lineage" and self.refine != 1:
            raise ValueError(f"--refine-whom lineage with --refine {self.refine}: expected --refine 1")
        if self.vote > self.finalists:
            raise ValueError(f"--vote {self.vote}: expected at most --finalists {self.finalists}")
        if self.soup == 1 or self.soup > self.finalists:
            raise ValueError(f"--soup {self.soup}: expected 0, or from 2 to --finalists {self.finalists}")
