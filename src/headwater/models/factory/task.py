"""What is minimised: the loss of texts, answers and preference pairs, one number for each example.

The same functions train the adapter and feed the influence index, so that what is credited is what
was optimised. `sampled_losses` puts the model's own draws in place of the labels: its gradients give
the Fisher information.

Source: Rafailov et al., 2023, direct preference optimisation, equation 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from headwater.models.factory.examples import Example, collate, stretch_sums
from headwater.models.factory.network import TopLayers


@dataclass(frozen=True, slots=True)
class AdapterTask:
    """Losses in nats: the mean over the tokens of a text or answer; for a pair, that of its preference."""

    beta: float
    places_min: int = 0  # batches are padded to at least so many; whoever collects gradients wants them all alike

    def losses(self, model: TopLayers, batch: Sequence[Example]) -> Tensor:
        """(examples,) losses with gradients to the adapter."""
        rows = collate(batch, self.places_min)
        return self._losses(batch, stretch_sums(rows, model(rows)), None)

    def sampled_losses(self, model: TopLayers, batch: Sequence[Example], generator: torch.Generator) -> Tensor:
        """(examples,) losses of labels drawn from the model: tokens of a text, or which answer is preferred."""
        rows = collate(batch, self.places_min)
        states = model.states(rows)
        of_pair = torch.tensor([len(example.stretches) == 2 for example in batch])[rows.target_rows]
        drawn = torch.where(of_pair, rows.targets, model.draw(states.detach(), generator))
        return self._losses(batch, stretch_sums(rows, model.log_probabilities(states, drawn)), generator)

    def _losses(self, batch: Sequence[Example], sums: Tensor, generator: torch.Generator | None) -> Tensor:
        learned = torch.tensor([float(example.stretches[0].learned) for example in batch])
        reference = torch.tensor([example.reference or (0.0, 0.0) for example in batch])
        ahead = sums - reference
        margin = self.beta * (ahead[:, 0] - ahead[:, 1])
        if generator is not None:
            preferred = torch.rand(len(batch), generator=generator) < margin.detach().sigmoid()
            margin = torch.where(preferred, margin, -margin)
        pair = torch.tensor([len(example.stretches) == 2 for example in batch])
        return torch.where(pair, -functional.logsigmoid(margin), -sums[:, 0] / learned)
