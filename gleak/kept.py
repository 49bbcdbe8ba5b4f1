"""What `gleak.flower.KeepUpdates` kept of a round, read without Flower."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from gleak.update import Update, WeightsUpdate


@dataclass(frozen=True)
class KeptRound:
    """The files of one round.

    sent: the model's weights as the server sent them. told: what it asked its clients to do, which
    counts as known. replies: name of a client -> the weights that it sent back.
    """

    sent: Path
    told: dict[str, float]
    replies: dict[str, Path]

    def update(
        self,
        client: str,
        model: nn.Module,
        input_shape: tuple[int, int, int],
        training: bool = True,
    ) -> WeightsUpdate:
        """The update of one client. model: gives the architecture."""
        update = Update.from_weights(
            self.sent,
            self.replies[client],
            model,
            num_samples=samples_of(client),
            input_shape=input_shape,
            training=training,
        )
        return dataclasses.replace(update, facts=self.told)  # by any name


def samples_of(client: str) -> int:
    """How many samples a client said to have, as it stands at the end of its name.

    >>> samples_of("client-17-32.0")
    32
    """
    return int(float(client.rpartition("-")[2]))


def kept_round(folder: str | Path, server_round: int = 1) -> KeptRound:
    """One round that was kept in a folder.

    Raises FileNotFoundError when nothing of that round was kept.
    """
    found = Path(folder) / f"round-{server_round}"
    if not (found / "told.json").is_file():
        raise FileNotFoundError(f"no round {server_round} in {folder}")
    told = json.loads((found / "told.json").read_text())
    replies = {file.stem: file for file in sorted(found.glob("client-*.safetensors"))}
    return KeptRound(found / "sent.safetensors", told, replies)


def kept_updates(
    folder: str | Path,
    model: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    server_round: int = 1,
    training: bool = True,
) -> list[WeightsUpdate]:
    """The updates of one round, one for each client.

    model: gives the architecture; its weights are those that the server sent in that round.

    Raises FileNotFoundError when nothing of that round was kept.
    """
    kept = kept_round(folder, server_round)
    return [kept.update(client, model, input_shape, training) for client in kept.replies]
