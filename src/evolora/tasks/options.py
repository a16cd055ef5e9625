"""Options of the task: where prompts come from."""

from evolora.options import Options, option


class TaskOptions(Options):
    """The prompts: a bundled task's, a file's, or one."""

    name: str | None = option(
        None,
        "bundled task: translate (default), arithmetic, sentiment, format; or 'gym:NAME(option=value, ...)', generated "
        "by reasoning-gym",
        common=True,
    )
    data: str | None = option(
        None, "JSONL or CSV file, or a folder of train/validation/test files, with a prompt column", common=True
    )
    prompt: str | None = option(None, "a single prompt to tune for", common=True, free_text=True)
    target: str | None = option(None, "the target of --prompt", common=True, free_text=True)

    max_validation_prompts: int = option(
        1000, "validation prompts that are used, drawn by the seed where there are more", ge=1
    )
    max_test_prompts: int = option(1000, "test prompts that are used, drawn by the seed where there are more", ge=1)

    def go_together(self) -> None:
        super().go_together()
        if self.target is not None and self.prompt is None:
            raise ValueError("--target: expected --prompt beside it")
        given = [("--task", self.name), ("--data", self.data), ("--prompt", self.prompt)]
        chosen = [option for option, value in given if value is not None]
        if len(chosen) > 1:
            raise ValueError(f"{chosen[0]} with {chosen[1]}: expected one of them")
