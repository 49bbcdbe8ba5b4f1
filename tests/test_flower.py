"""A server of the real framework that keeps what it receives."""

import importlib
import subprocess
from types import SimpleNamespace

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

import gleak
from gleak.flower import KeepUpdates, kept_updates
from gleak.study import chapters


class TwoNodes:
    """What the strategy asks of Flower's grid before it sends."""

    def get_node_ids(self):
        return [7, 8]


def reply(node, sent, number):
    """A client's message, as far as the strategy looks at it."""
    metrics = MetricRecord({"num-examples": number})
    content = RecordDict({"arrays": ArrayRecord(sent), "metrics": metrics})
    return SimpleNamespace(
        content=content,
        metadata=SimpleNamespace(src_node_id=node),
        has_content=lambda: True,
        has_error=lambda: False,
    )


def test_the_strategy_keeps_what_each_client_sends_and_averages_as_before(
    two_layers, tmp_path, monkeypatch
):
    strategy = KeepUpdates(tmp_path, fraction_evaluate=0.0)
    # messages proper can be made within a run only
    monkeypatch.setattr(strategy, "_construct_messages", lambda record, nodes, kind: nodes)
    told = ConfigRecord(
        {"lr": 0.1, "epochs": 1, "batch_size": 2, "colour": "red", "weight_decay": 0.5}
    )
    state = two_layers.state_dict()
    nodes = strategy.configure_train(3, ArrayRecord(state), told, TwoNodes())
    assert sorted(nodes) == [7, 8]
    replies = [
        reply(node, {name: value + number for name, value in state.items()}, number)
        for number, node in enumerate(nodes, start=1)
    ]
    arrays, _ = strategy.aggregate_train(3, replies)
    mean = arrays.to_torch_state_dict()["1.bias"]
    torch.testing.assert_close(mean, state["1.bias"] + (1 * 1 + 2 * 2) / 3)

    updates = kept_updates(tmp_path, two_layers, (1, 4, 4), server_round=3)
    assert sorted(update.num_samples for update in updates) == [1, 2]
    for update in updates:
        assert update.facts == {"lr": 0.1, "epochs": 1, "batch_size": 2, "weight_decay": 0.5}
        change = update.weights_after["1.bias"] - state["1.bias"]
        torch.testing.assert_close(change, torch.full((5,), float(update.num_samples)))
    with pytest.raises(FileNotFoundError, match="no round 1"):
        kept_updates(tmp_path, two_layers, (1, 4, 4))


def test_a_round_on_this_machine_leaks_its_labels_and_leaves_no_process(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(chapters.root() / "book" / "flower")
    example = importlib.import_module("run")
    example.federated_round(tmp_path)
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(tmp_path) not in running.stdout
    shape = gleak.load_batch("cifar10-samples", indices=[19])
    model = gleak.build_model("convnet", shape)
    (update,) = kept_updates(tmp_path / "kept", model, (3, 32, 32))
    batch = importlib.import_module("client_app").own_images()
    assert update.num_samples == len(batch)
    counts = gleak.restore_labels(update, "zlg-bias", inputs=100)
    assert torch.equal(counts, batch.label_counts), (tmp_path / "log").read_text()
