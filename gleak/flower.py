"""A Flower server that keeps what it receives, and what it receives as updates to attack.

The strategy is Flower's own FedAvg: it asks clients for nothing that they would not send anyway.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from safetensors.torch import save_file
from torch import nn

from gleak.storage import whole
from gleak.update import Update, WeightsUpdate


class KeepUpdates(FedAvg):
    """FedAvg that writes each round's model, and each client's reply to it, into a folder.

    What the configuration of the round says in plain numbers counts as told to the server too: lr,
    epochs, batch_size and whatever else a method may read (see `gleak.Update`).
    """

    def __init__(self, folder: str | Path, **settings: Any) -> None:
        super().__init__(**settings)
        self.folder = Path(folder)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As FedAvg; what the server told its clients to do is kept along with the model."""
        keep(arrays, self.folder / f"round-{server_round}" / "sent.safetensors")
        # a round's number, which Flower adds, is no fact of training
        numbers = {n: v for n, v in config.items() if isinstance(v, (int, float))}
        told = {name: value for name, value in numbers.items() if name != "server-round"}
        (self.folder / f"round-{server_round}" / "told.json").write_text(json.dumps(told))
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As FedAvg, after each reply has been kept."""
        replies = list(replies)
        for reply in replies:
            if reply.has_content():
                (weights,) = reply.content.array_records.values()
                (metrics,) = reply.content.metric_records.values()
                name = f"client-{reply.metadata.src_node_id}-{metrics[self.weighted_by_key]}"
                keep(weights, self.folder / f"round-{server_round}" / f"{name}.safetensors")
        return super().aggregate_train(server_round, replies)


def keep(arrays: ArrayRecord, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: torch.from_numpy(array.numpy().copy()) for name, array in arrays.items()}
    with whole(path) as partial:
        save_file(tensors, partial)


def kept_updates(
    folder: str | Path,
    model: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    server_round: int = 1,
    training: bool = True,
) -> list[WeightsUpdate]:
    """The updates of one round that `KeepUpdates` kept, one for each client.

    model: gives the architecture; its weights are those that the server sent in that round.

    Raises FileNotFoundError when nothing of that round was kept.
    """
    folder = Path(folder) / f"round-{server_round}"
    if not (folder / "told.json").is_file():
        raise FileNotFoundError(f"no round {server_round} in {folder.parent}")
    told = json.loads((folder / "told.json").read_text())
    updates = [
        Update.from_weights(
            folder / "sent.safetensors",
            file,
            model,
            num_samples=int(float(file.stem.rpartition("-")[2])),
            input_shape=input_shape,
            training=training,
        )
        for file in sorted(folder.glob("client-*.safetensors"))
    ]
    return [dataclasses.replace(update, facts=told) for update in updates]  # by any name
