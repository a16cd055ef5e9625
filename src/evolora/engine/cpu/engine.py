"""An engine on a CPU: compiled products, attention and GPT-2 passes. The only door to what is beside this file."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evolora.engine.base import Completions, Prompts, Scored, Scoring
from evolora.engine.calibration import available_cores
from evolora.engine.cpu.compile import prepare
from evolora.engine.cpu.gpt2.activations import Gpt2Tape
from evolora.engine.cpu.install import install
from evolora.engine.cpu.kernels import CpuKernels
from evolora.engine.cpu.levers import Levers
from evolora.engine.cpu.matmul.choice import Products, fastest_products
from evolora.engine.cpu.matmul.frozen_linear import FrozenProduct
from evolora.engine.cpu.needed import needed
from evolora.engine.eager.engine import EagerEngine, Graph
from evolora.engine.progress import Progress
from evolora.models.genome import GenomeLayout


class CpuEngine(EagerEngine):
    """An `EagerEngine` whose copy of the module tree computes by compiled functions wherever they can take its layers.

    Frozen float32 layers of any architecture multiply by `products`, attention goes over packed texts and over the
    cache by compiled functions, and GPT-2's passes are a compiled function a layer. Whatever they do not know is left
    to the model's own modules.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layout: GenomeLayout,
        *,
        products: Products | None = None,
        levers: Levers | None = None,
    ) -> None:
        levers = levers or Levers()
        super().__init__(model, layout, kernels=CpuKernels(levers))
        self.products: Products = products or fastest_products()
        install(self.layers.model, self.products, levers)

    def prepare(self, progress: Progress, *, learns: bool, dropout: float) -> None:
        """Compile what a run needs: one whose genomes are refined too, if it `learns`, with so much dropout."""
        versions = needed(self.layers.model, self.products, learns=learns, dropout=dropout)
        prepare(versions, progress, workers=available_cores())

    def copies(self) -> tuple[int, int]:
        """See `Copies.copies`."""
        products = [module.forward for module in self.layers.model.modules()]
        found = [each.copies() for each in products if isinstance(each, FrozenProduct)]
        return sum(now for now, _ in found), sum(most for _, most in found)

    def replica(self) -> Self:
        engine = super().replica()
        engine.products = self.products
        return engine

    def _score(
        self, genomes: Tensor | None, prompts: Prompts, completions: Completions, how: Scoring, times: int
    ) -> Scored:
        tape = completions.trace
        if isinstance(tape, Gpt2Tape):
            if how.gradient and genomes is not None and not how.dropout and not how.features:
                leaf = self._placed(genomes).detach().requires_grad_()
                with torch.enable_grad():
                    found = tape.log_probs(
                        leaf,
                        completions.ids,
                        completions.mask,
                        temperature=how.temperature,
                        entropy_gradient=how.entropy_gradient,
                    )
                return TracedGraph(leaf, *found, None, tape)
            tape.release()
        return super()._score(genomes, prompts, completions, how, times)


@dataclass
class TracedGraph(Graph):
    """What a trace has the gradient of."""

    trace: Gpt2Tape

    def release(self) -> None:
        super().release()
        self.trace.release()
