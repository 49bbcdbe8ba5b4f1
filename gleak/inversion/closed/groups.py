"""A convolution in groups, as so many convolutions, each of its own channels."""

import copy
from dataclasses import replace

import torch
from torch import nn

from gleak.inversion.closed.known import Place


class OfGroup(nn.Module):
    """What a layer that keeps channels apart does to the channels of one group."""

    def __init__(self, layer: nn.Module, group: int, groups: int) -> None:
        super().__init__()
        self.layer, self.group, self.groups = layer, group, groups

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(K, channels of the group, ...)."""
        whole = [torch.zeros_like(values)] * self.groups
        whole[self.group] = values
        return self.layer(torch.cat(whole, dim=1)).chunk(self.groups, dim=1)[self.group]


def in_groups(
    layer: nn.Conv2d | nn.Linear, place: Place, observed: torch.Tensor
) -> list[tuple[nn.Conv2d | nn.Linear, Place, torch.Tensor]]:
    """Each group's convolution, what is known at its output, and its weight gradient.

    place: at the output of the layer. observed: its weight gradient.
    """
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    if groups == 1:
        return [(layer, place, observed)]

    def channels(values: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        return (None,) * groups if values is None else values.chunk(groups, dim=1)

    others = zip(*map(channels, place.other or (None, None)), strict=True)
    places = [
        replace(
            place,
            slope=slope,
            values=values,
            known=known,
            unmasked=unmasked,
            onwards=tuple(OfGroup(between, group, groups) for between in place.onwards),
            passed=0.0,
            other=other if place.other else None,
        )
        for group, (slope, values, known, unmasked, other) in enumerate(
            zip(
                place.whole_slope.chunk(groups, dim=1),
                channels(place.values),
                channels(place.known),
                channels(place.unmasked),
                others,
                strict=True,
            )
        )
    ]
    weights = layer.weight.chunk(groups)
    biases = (None,) * groups if layer.bias is None else layer.bias.chunk(groups)
    layers = [part_of(layer, *own) for own in zip(weights, biases, strict=True)]
    return list(zip(layers, places, observed.chunk(groups), strict=True))


def part_of(
    layer: nn.Conv2d | nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None
) -> nn.Conv2d:
    """A convolution with a part of the weight (out, channels, ...) and bias (out,) of another."""
    assert isinstance(layer, nn.Conv2d)
    part = copy.copy(layer)
    part.groups, part.in_channels, part.out_channels = 1, weight.shape[1], len(weight)
    own = {"weight": weight, "bias": bias}
    vars(part)["_parameters"] = {
        name: None if value is None else nn.Parameter(value.detach()) for name, value in own.items()
    }
    return part
