"""Options of the workers that a run's batches are dealt to."""

from typing import ClassVar

from evolora.options import Options, option


class WorkersOptions(Options):
    """Who computes the slices of a batch, beside or in place of this process."""

    prefixed: ClassVar[bool] = True
    head: ClassVar[str] = "count"

    count: int | None = option(
        None,
        "worker processes that the model's work is dealt to, by Ray; 0: none, the same slices in this process; default "
        "with --ray: as many as the cluster has room for",
        alias="workers",
        ge=0,
    )
    ray: str | None = option(
        None, "address of a running Ray cluster, HOST:PORT, or auto for this machine's", alias="ray"
    )
    gpus: float | None = option(
        None, "GPUs of each worker, also parts of one, such as 0.5; default: one where --device is a GPU", ge=0
    )
    limit: float | None = option(
        None,
        "seconds that a worker may take for a slice before it is replaced; default: many times what the longest one "
        "has taken so far",
        gt=0,
    )
    slice_rows: int | None = option(
        None,
        "rows of a batch that are dealt at a time; a run's rounding depends on it, and not on the number of workers; "
        "default with --workers or --ray: 64, of a large model 48",
        alias="slice_rows",
        ge=1,
    )

    @property
    def asked(self) -> bool:
        """Whether batches are dealt in slices."""
        return self.count is not None or self.ray is not None or self.slice_rows is not None

    @property
    def remote(self) -> bool:
        """Whether others than this process compute them."""
        return bool(self.count) or self.ray is not None

    def go_together(self) -> None:
        super().go_together()
        if self.ray is not None and self.count == 0:
            raise ValueError(f"--workers 0 with --ray {self.ray}: expected at least one worker, or no cluster")
        if self.ray is not None and "://" in self.ray:
            raise ValueError(
                f"--ray {self.ray}: expected HOST:PORT or auto, evolora runs on one of the cluster's own machines"
            )
        if self.ray is not None and self.ray != "auto":
            host, _, port = self.ray.rpartition(":")
            if not host or not port.isdigit():
                raise ValueError(f"--ray {self.ray!r}: expected HOST:PORT of a cluster's head, or auto")
        for name, value in (("gpus", self.gpus), ("limit", self.limit)):
            # With 0, to which a run may be resumed, there is nobody whom they are for.
            if value is not None and self.count is None and self.ray is None:
                raise ValueError(f"--workers-{name} {value:g} without workers: expected --workers or --ray beside it")
