"""A Flower server that keeps what it receives, and what it receives as updates to attack.

The strategy is Flower's own FedAvg: it asks clients for nothing that they would not send anyway.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from gleak.extras import extra
from gleak.kept import kept_updates as kept_updates
from gleak.storage import whole

with extra("flower"):
    from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
    from flwr.common.serde import recorddict_from_proto
    from flwr.proto.message_pb2 import Message as ProtoMessage
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import FedAvg
    from google.protobuf.message import DecodeError


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


def read_message(file: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """A message of Flower, as it travels (protobuf): its arrays by name, and its numbers.

    Numbers are those of its metrics, such as the client's "num-examples". Arrays are NumPy's, and
    never objects.

    Raises FileNotFoundError, or ValueError for anything else than a message with arrays.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        content = recorddict_from_proto(ProtoMessage.FromString(path.read_bytes()).content)
        arrays = [
            (name, array.numpy())
            for record in content.array_records.values()
            for name, array in record.items()
        ]
    except (DecodeError, ValueError, TypeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a message of Flower: {error}") from None
    if not arrays:
        raise ValueError(f"{path} is a message of Flower without arrays")
    numbers = {
        name: value
        for record in content.metric_records.values()
        for name, value in record.items()
        if isinstance(value, (int, float))
    }
    return {name: torch.from_numpy(array.copy()) for name, array in arrays}, numbers
