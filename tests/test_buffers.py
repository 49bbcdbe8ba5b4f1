"""What the running statistics that travel with a client's weights say of its batch."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gleak
from gleak.buffers import statistics_of
from gleak.network import as_sent
from gleak.study.served import read_update

SHAPE = (3, 32, 32)
TOLD = {"lr": 0.01, "epochs": 1, "batch_size": 4}


def normed(momentum=0.1):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, 2),
            nn.BatchNorm2d(8, momentum=momentum),
            nn.Sigmoid(),
            nn.Flatten(),
            nn.Linear(1800, 16),
            nn.BatchNorm1d(16, momentum=momentum),
            nn.Linear(16, 10),
        )


def after(net, batch, steps=1):
    local = copy.deepcopy(net).train()
    optimiser = torch.optim.SGD(local.parameters(), 0.01)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(local(batch.images), batch.labels).backward()
        optimiser.step()
    return local.state_dict()


def update_of(net, sent, **told):
    return gleak.Update.from_weights(
        net.state_dict(), sent, net, num_samples=4, input_shape=SHAPE, **{**TOLD, **told}
    )


@pytest.mark.parametrize("momentum", [0.1, 0.9, None])
@pytest.mark.parametrize("trained", [0, 2])
def test_one_step_tells_the_statistics_of_its_batch(batch, momentum, trained):
    net = normed(momentum)
    net.load_state_dict(after(net, batch, trained))
    update = update_of(net, after(net, batch))
    expected = statistics_of(as_sent(net, True), batch.images)
    assert list(update.statistics) == ["1", "5"]
    for name, pair in expected.items():
        for known, true in zip(update.statistics[name], pair, strict=True):
            torch.testing.assert_close(known, true, rtol=1e-3, atol=1e-5)
    own = gleak.fedavg(net, batch, lr=0.01, buffers=True)
    for name, pair in expected.items():
        assert all(map(torch.equal, own.statistics[name], pair))
    assert not gleak.fedavg(net, batch, lr=0.01).statistics
    assert not gleak.fedavg(net, batch, lr=0.01, epochs=2, buffers=True).statistics


def test_a_difference_of_buffers_tells_them_too(batch):
    net = normed()
    sent, before = after(net, batch), net.state_dict()
    change = {name: value - before[name] for name, value in sent.items()}
    update, plain = update_of(net, change, delta=True), update_of(net, sent)
    for name, pair in plain.statistics.items():
        for one, other in zip(update.statistics[name], pair, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_several_steps_tell_none_whatever_was_told(batch):
    net = normed()
    assert not update_of(net, after(net, batch, 2)).statistics  # the layers counted two
    sent = {n: v for n, v in after(net, batch, 2).items() if "num_batches" not in n}
    assert not update_of(net, sent, epochs=2).statistics
    assert not update_of(net, sent, epochs=None).statistics
    half = {name: value.half() for name, value in after(net, batch).items()}
    assert not update_of(net, half).statistics
    only = {n: v for n, v in after(net, batch).items() if n in dict(net.named_parameters())}
    assert not update_of(net, only).statistics


def test_buffers_that_moved_are_no_eval_mode(batch):
    net = normed()
    with pytest.raises(gleak.Contradiction, match="say training=True"):
        update_of(net, after(net, batch), training=False)
    still = net.state_dict() | {"6.bias": torch.ones(10)}
    assert not update_of(net, {n: v.half() for n, v in still.items()}, training=False).statistics


def make_normed(**_):
    """What module:test_buffers:make_normed finds."""
    return normed()


def test_a_server_is_told_what_they_say_or_why_they_say_nothing(batch, tmp_path):
    net = normed()
    torch.save(net.state_dict(), tmp_path / "before.pt")

    def read(sent, **told):
        torch.save(sent, tmp_path / "after.pt")
        files = {"before": tmp_path / "before.pt", "after": tmp_path / "after.pt"}
        return read_update("module:test_buffers:make_normed", SHAPE, **files, **{**TOLD, **told})

    found = read(after(net, batch), samples=4)
    assert len(found.update.statistics) == 2
    assert "running statistics" not in str(found.assumed)
    many = read(after(net, batch, 3), epochs=3, samples=4)
    assert not many.update.statistics
    assert "means over 3 local steps" in str(many.assumed)
    with pytest.raises(gleak.Contradiction, match="counted 3 local steps.*told are 1"):
        read(after(net, batch, 3), samples=4)
    still = {**after(net, batch), **dict(net.named_buffers())}
    assert "did not move" in str(read(still, samples=4).assumed)


def test_statistics_that_were_sent_are_matched(batch):
    net = nn.Sequential(nn.Conv2d(3, 4, 5, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.0))
    net = nn.Sequential(*net, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    many = gleak.Batch(batch.images, torch.tensor([0, 1, 0, 1]), ["a", "b"])  # no closed form
    update = gleak.fedavg(net, many, lr=0.01, buffers=True)
    found = gleak.invert(update, many.label_counts, "gleak", iterations=8, progress=False)
    assert "batch norm statistics sent" in found.way
    assert found.history["batch_norm"].gt(0).all()
