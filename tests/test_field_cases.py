"""What people who do this job bring along: each is attacked as what it is, or refused in a sentence
that says what to do.
"""

import copy
import dataclasses

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import gleak
from gleak import defences

SHAPE = (3, 32, 32)


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, 2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(1568, 10),
        )


@pytest.fixture
def trained(net, batch):
    """The network after local training, by an optimiser made from its parameters."""

    def train(make, steps=1, reduction="mean"):
        after = copy.deepcopy(net)
        optimiser = make(after.parameters())
        for _ in range(steps):
            optimiser.zero_grad()
            F.cross_entropy(after(batch.images), batch.labels, reduction=reduction).backward()
            optimiser.step()
        return after

    return train


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.01)


def sent(net, after, **facts):
    facts = {"lr": 0.01, "epochs": 1, "batch_size": 4} | facts
    return gleak.Update.from_weights(
        net.state_dict(), after, net, num_samples=4, input_shape=SHAPE, **facts
    )


def test_a_summed_loss_is_seen_and_can_be_told(net, batch):
    F.cross_entropy(net(batch.images), batch.labels, reduction="sum").backward()
    gradient = {name: p.grad.clone() for name, p in net.named_parameters()}
    update = gleak.Update(net, 4, SHAPE, gradient=gradient)
    assert "but         the bias gradient is at least 2.4 times as large" in str(update)
    for refused in (
        lambda: gleak.restore_labels(update, "gleak"),
        lambda: gleak.label_posterior(update),
        lambda: gleak.single_images(update),
        lambda: gleak.invert(update, batch.label_counts, "gleak", progress=False),
    ):
        with pytest.raises(gleak.Contradiction, match=r"sums the loss.*update.of_summed_loss\(\)"):
            refused()
    mean = update.of_summed_loss()
    assert mean.contradictions() == []
    assert mean.precision == update.precision
    own = gleak.fedsgd(net, batch)
    for name, value in own.gradient.items():
        torch.testing.assert_close(mean.gradient[name], value)
    assert torch.equal(gleak.restore_labels(mean, "gleak"), batch.label_counts)


@pytest.mark.parametrize(
    ("batch_size", "drop_last", "samples"), [(4, 0, 4), (2, 0, 2), (3, 0, 2), (3, 1, 3), (9, 0, 4)]
)
def test_a_summed_loss_of_weights(net, trained, batch_size, drop_last, samples):
    after = trained(sgd, reduction="sum").state_dict()
    update = sent(net, after, batch_size=batch_size, drop_last=drop_last)
    told = update.of_summed_loss().facts
    assert told == update.facts | {"lr": 0.01 * samples}


def test_a_summed_loss_of_weights_is_seen(net, trained, batch):
    update = sent(net, trained(sgd, 3, "sum").state_dict(), epochs=3)
    with pytest.raises(gleak.Contradiction, match="lr, epochs or batch_size are not as told"):
        gleak.restore_labels(update, "gleak")
    assert torch.equal(gleak.restore_labels(update.of_summed_loss(), "gleak"), batch.label_counts)


@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize("optimiser", [torch.optim.Adam, torch.optim.AdamW])
def test_a_client_of_adam_is_seen(net, trained, optimiser, steps):
    after = trained(lambda p: optimiser(p, 1e-3), steps).state_dict()
    update = sent(net, after, lr=1e-3, epochs=steps)
    with pytest.raises(gleak.Contradiction, match="steps of Adam.* needs a client of SGD"):
        gleak.restore_labels(update, "zlg")
    silent = sent(net, after, lr=None, epochs=steps)  # then no size is asked for
    assert silent.contradictions() == []


@pytest.mark.parametrize("steps", [1, 3])
def test_weights_after_that_are_a_difference(net, trained, batch, steps):
    after = trained(sgd, steps).state_dict()
    change = {name: value - net.state_dict()[name] for name, value in after.items()}
    with pytest.raises(gleak.Contradiction, match="`after` is near zero.*delta=True"):
        sent(net, change, epochs=steps)
    update = sent(net, change, epochs=steps, delta=True)
    for name, value in after.items():
        torch.testing.assert_close(update.weights_after[name], value)
    assert torch.equal(gleak.restore_labels(update, "gleak"), batch.label_counts)
    wrong = dataclasses.replace(update, weights_after=change)
    with pytest.raises(gleak.Contradiction, match="near zero and far from those before"):
        gleak.restore_labels(wrong, "gleak")


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("steps", [1, 5])
def test_weight_decay_is_undone(net, trained, batch, steps, momentum):
    facts = {"lr": 0.05, "epochs": steps, "momentum": momentum}

    def decaying(parameters, decay=0.1):
        return torch.optim.SGD(parameters, 0.05, momentum=momentum, weight_decay=decay)

    update = sent(net, trained(decaying, steps).state_dict(), **facts, weight_decay=0.1)
    plain = sent(net, trained(lambda p: decaying(p, 0.0), steps).state_dict(), **facts)
    silent = sent(net, trained(decaying, steps).state_dict(), **facts)
    expected = plain.equivalent_gradient()
    near, far = (
        torch.cat([(u.equivalent_gradient()[n] - g).flatten() for n, g in expected.items()]).norm()
        for u in (update, silent)
    )
    # one step: to the last digits of the weights; more: the way itself is another
    assert near < (1e-3 if steps == 1 else 0.1) * far
    assert update.contradictions() == []
    assert torch.equal(gleak.restore_labels(update, "gleak"), batch.label_counts)


def test_a_schedule_is_told_by_its_mean(net, batch):
    after, rates = copy.deepcopy(net), []
    optimiser = torch.optim.SGD(after.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 6)
    for _ in range(6):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.zero_grad()
        F.cross_entropy(after(batch.images), batch.labels).backward()
        optimiser.step(), schedule.step()
    update = sent(net, after.state_dict(), lr=sum(rates) / 6, epochs=6)
    assert update.contradictions() == []
    assert torch.equal(gleak.restore_labels(update, "gleak"), batch.label_counts)


@pytest.mark.parametrize(
    ("fact", "words"),
    [
        ({"nesterov": True}, r"tell lr \(1 \+ momentum\) as lr"),
        ({"dampening": 0.5}, "leave out momentum"),
        ({"label_smoothing": 0.1}, "gives away without smoothing"),
        ({"weight_decay": -1.0}, "at least 0"),
    ],
)
def test_facts_that_are_not_followed_are_refused(net, trained, fact, words):
    with pytest.raises(ValueError, match=words):
        sent(net, trained(sgd).state_dict(), **fact)
    off = sent(net, trained(sgd).state_dict(), **dict.fromkeys(fact, 0.0))
    assert off.contradictions() == []


def test_one_step_of_nesterov_told_as_the_sentence_says(net, trained, batch):
    after = trained(lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True)).state_dict()
    update, plain = sent(net, after, lr=0.01 * 1.9), gleak.fedsgd(net, batch)
    for name, gradient in update.equivalent_gradient().items():
        torch.testing.assert_close(gradient, plain.gradient[name], rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_files_of_half_precision(net, batch, dtype, ending, tmp_path):
    gradient = {name: g.to(dtype) for name, g in gleak.fedsgd(net, batch).gradient.items()}
    save = save_file if ending == "safetensors" else torch.save
    save(gradient, tmp_path / f"half.{ending}")
    update = gleak.Update.from_gradient(
        tmp_path / f"half.{ending}", net, num_samples=4, input_shape=SHAPE
    )
    assert update.precision == gleak.wire.ROUNDING[dtype]
    assert torch.equal(gleak.restore_labels(update, "gleak"), batch.label_counts)


def test_a_file_of_sparse_gradients(net, batch, tmp_path):
    update = defences.prune(gleak.fedsgd(net, batch), 0.5)
    torch.save({n: g.to_sparse() for n, g in update.gradient.items()}, tmp_path / "sparse.pt")
    read = gleak.Update.from_gradient(tmp_path / "sparse.pt", net, num_samples=4, input_shape=SHAPE)
    for name, gradient in update.gradient.items():
        assert torch.equal(read.gradient[name], gradient)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_module."])
def test_wrapped_names_in_files_of_weights(batch, prefix, tmp_path):
    """By `weights=` and by `Update.load`, also without the normalisation before the network."""
    net = gleak.build_model("lenet", batch, seed=5)
    inner = {prefix + n: value for n, value in net[1].state_dict().items()}
    whole = {prefix + n: value for n, value in net.state_dict().items()}
    for tensors, key in ((inner, "state_dict"), (whole, "model_state_dict"), (whole, "model")):
        torch.save({key: tensors}, tmp_path / "weights.pt")
        read = gleak.build_model("lenet", batch, weights=tmp_path / "weights.pt")
        for name, value in net.state_dict().items():
            assert torch.equal(read.state_dict()[name], value)
    torch.save({prefix + "1.9.bias": torch.ones(10)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="does not fit the model"):
        gleak.build_model("lenet", batch, weights=tmp_path / "weights.pt")


def test_an_update_saved_behind_a_wrapper(net, batch, tmp_path):
    wrapped = gleak.fedsgd(nn.DataParallel(net), batch)
    wrapped.save(tmp_path / "update")
    update = gleak.Update.load(tmp_path / "update", net)
    assert list(update.gradient) == list(net.state_dict())
    assert torch.equal(gleak.restore_labels(update, "gleak"), batch.label_counts)
    again = gleak.Update.load(tmp_path / "update", nn.DataParallel(net))
    assert list(again.gradient) == list(wrapped.gradient)


DEFENCES = {
    "none": lambda update: update,
    "clip": lambda update: defences.clip(update, 0.01),
    "noise": lambda update: defences.add_noise(update, 0.01, seed=0),
    "much noise": lambda update: defences.add_noise(update, 100.0, seed=0),
    "half": lambda update: defences.prune(update, 0.5),
    "few": lambda update: defences.prune(update, 0.99),
    "3 bits": lambda update: defences.quantise(update, bits=3),
    "2 bits": lambda update: defences.quantise(update, bits=2),
    "sign": defences.sign,
    "bfloat16": lambda update: defences.cast(update, torch.bfloat16),
    "pair": lambda update: defences.aggregate([update, update]),
}


@pytest.mark.parametrize("defence", DEFENCES)
@pytest.mark.parametrize("name", ["lenet", "convnet", "resnet18"])
@pytest.mark.parametrize("client", [gleak.fedsgd, gleak.fedavg], ids=["fedsgd", "fedavg"])
def test_honest_updates_are_not_refused(batch, name, client, defence):
    update = DEFENCES[defence](client(gleak.build_model(name, batch), batch))
    update.refuse_contradictions()
    if defence in ("none", "clip", "bfloat16", "pair"):
        assert update.contradictions() == []
        assert "but  " not in str(update)
    if defence in ("noise", "sign"):
        assert ["sums to" in sentence for sentence in update.contradictions()] == [True]


@pytest.mark.parametrize("lr", [1e-5, 1.0])
@pytest.mark.parametrize("name", ["lenet", "convnet"])
def test_neither_small_nor_large_steps_are_a_contradiction(batch, name, lr):
    update = gleak.fedavg(gleak.build_model(name, batch), batch, epochs=5, batch_size=2, lr=lr)
    assert update.contradictions() == []


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_module.", "module._orig_mod."])
def test_names_behind_the_prefix_of_a_wrapper(net, trained, batch, prefix):
    before, after = (
        {f"{prefix}{name}": value for name, value in weights.items()}
        for weights in (net.state_dict(), trained(sgd).state_dict())
    )
    facts = {"num_samples": 4, "input_shape": SHAPE, "lr": 0.01, "epochs": 1, "batch_size": 4}
    update = gleak.Update.from_weights(before, after, net, **facts)
    assert list(update.weights_after) == list(net.state_dict())
    assert torch.equal(gleak.restore_labels(update, "gleak"), batch.label_counts)
    gradient = {f"{prefix}{n}": g for n, g in gleak.fedsgd(net, batch).gradient.items()}
    assert list(gleak.Update(net, 4, SHAPE, gradient=gradient).gradient) == list(net.state_dict())
    other = {name.replace(prefix, "other."): value for name, value in gradient.items()}
    with pytest.raises(ValueError, match="it has no other.0.bias"):
        gleak.Update(net, 4, SHAPE, gradient=other)


def test_a_network_in_a_wrapper_takes_names_without_its_prefix(net, batch):
    gradient = dict(gleak.fedsgd(net, batch).gradient)
    update = gleak.Update(nn.DataParallel(net), 4, SHAPE, gradient=gradient)
    assert list(update.gradient) == [f"module.{name}" for name in gradient]
    assert update.classifier.name == "module.5"


def test_sparse_gradients_are_what_they_stand_for(net, batch):
    update = defences.prune(gleak.fedsgd(net, batch), 0.5)
    sparse = {name: value.to_sparse() for name, value in update.gradient.items()}
    taken = gleak.Update(net, 4, SHAPE, gradient=sparse)
    for name, value in update.gradient.items():
        assert torch.equal(taken.gradient[name], value)
    assert taken.precision == update.precision
    after = {name: value.detach().to_sparse() for name, value in net.state_dict().items()}
    assert sent(net, after).weights_after["5.bias"].layout == torch.strided


class Body(nn.Module):
    """A convolution and a linear classifier; subclasses say what becomes of it."""

    def __init__(self, bias=True, side=32):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 16, 3, 2)
            self.head = nn.Linear(16 * ((side - 1) // 2) ** 2, 10, bias=bias)

    def features(self, images):
        return F.sigmoid(self.conv(images)).flatten(1)

    def forward(self, images):
        return self.head(self.features(images))


class LogSoftmax(Body):
    def forward(self, images):
        return F.log_softmax(self.head(self.features(images)), dim=1)


class LogSoftmaxLayer(Body):
    def __init__(self, **options):
        super().__init__(**options)
        self.last = nn.LogSoftmax(1)

    def forward(self, images):
        return self.last(self.head(self.features(images)))


class LogitsFirst(Body):
    def forward(self, images):
        features = self.features(images)
        return self.head(features), features


class LogitsLast(Body):
    def forward(self, images):
        features = self.features(images)
        return {"nothing": None, "features": features, "more": [self.head(features)]}


@pytest.mark.parametrize("kind", [LogSoftmax, LogSoftmaxLayer, LogitsFirst, LogitsLast])
def test_heads_that_give_the_same_gradient(batch, kind):
    batch = dataclasses.replace(batch, images=batch.images[:, :, 10:22, 10:22])
    plain, update = gleak.fedsgd(Body(side=12), batch), gleak.fedsgd(kind(side=12), batch)
    assert update.classifier.name == "head"
    for name, value in plain.gradient.items():
        torch.testing.assert_close(update.gradient[name], value)
    assert torch.equal(gleak.restore_labels(update, "gleak"), batch.label_counts)
    found, as_plain = (
        gleak.invert(one, batch.label_counts, "gleak", iterations=3, progress=False)
        for one in (update, plain)
    )
    assert found.way == as_plain.way and not found.fell_back  # the closed forms know it, too
    copied = copy.deepcopy(update).as_gradient()
    assert copied.forward(batch.images)[1].shape == (4, 10)
    again = gleak.Update(kind(side=12), 4, (3, 12, 12), gradient=update.gradient)
    assert again.classifier.name == "head"


@pytest.mark.parametrize("client", [gleak.fedsgd, gleak.fedavg], ids=["fedsgd", "fedavg"])
def test_a_network_of_several_outputs_is_left_as_it_was(batch, client):
    model = LogitsFirst()
    update = client(model, batch)
    assert isinstance(model(batch.images), tuple)
    made = gleak.Update(model, 4, SHAPE, **{update.holds: update.sent})
    assert isinstance(model(batch.images), tuple)
    assert made.model(batch.images).shape == (4, 10)
    assert torch.equal(gleak.restore_labels(update, "gleak"), batch.label_counts)


def test_a_network_whose_outputs_are_no_logits(batch):
    class Softmax(Body):
        def forward(self, images):
            return super().forward(images).softmax(1), images

    with pytest.raises(ValueError, match=r"is a tuple, .* no tensor \(K, N\) in it comes straight"):
        gleak.fedsgd(Softmax(), batch)
    Softmax.forward = lambda self, images: Body.forward(self, images).softmax(1)
    with pytest.raises(ValueError, match=r"not the output of its last Linear layer \(head\)"):
        gleak.fedsgd(Softmax(), batch)
    zeros = Softmax()  # all classes alike, before and after a softmax
    nn.init.zeros_(zeros.head.weight), nn.init.zeros_(zeros.head.bias)
    with pytest.raises(ValueError, match="not the output of its last Linear"):
        gleak.fedsgd(zeros, batch)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_classifier_without_bias_or_one_that_is_not_trained(batch, frozen):
    model = Body(bias=frozen)
    if frozen:
        model.head.bias.requires_grad_(False)
    update = gleak.fedsgd(model, batch)
    counts = gleak.restore_labels(update, "gleak")
    assert torch.equal(counts, batch.label_counts)
    assert torch.equal(counts, gleak.restore_labels(update, "zlg"))
    with pytest.raises(gleak.MissingKnowledge, match="zlg works from the weight gradient"):
        gleak.label_posterior(update)
    found = gleak.invert(update, counts, "gleak", iterations=2, progress=False)
    assert found.images.isfinite().all()


class Pooled(nn.Module):
    """A 1x1 convolution and a mean, or the mean first and a linear layer: the same function."""

    def __init__(self, convolution):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv, self.head = nn.Conv2d(3, 16, 3, 2), nn.Conv2d(16, 10, 1)
        self.convolution = convolution
        if not convolution:
            head = nn.Linear(16, 10)
            head.weight.data, head.bias.data = self.head.weight.data.flatten(1), self.head.bias.data
            self.head = head

    def forward(self, images):
        features = F.relu(self.conv(images))
        if self.convolution:
            return F.adaptive_avg_pool2d(self.head(features), 1).flatten(1)
        return self.head(features.mean((2, 3)))


@pytest.mark.parametrize(
    "client",
    [gleak.fedsgd, lambda *what: gleak.fedavg(*what, epochs=3, lr=0.1)],
    ids=["fedsgd", "fedavg"],
)
def test_a_convolution_as_classifier_is_read_as_the_linear_layer_it_is(batch, client):
    update, linear = (client(Pooled(convolution), batch) for convolution in (True, False))
    assert update.classifier.weight.shape == (10, 16)
    for one, other in zip(update.classifier_gradient(), linear.classifier_gradient(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    for one, other in zip(update.forward(batch.images), linear.forward(batch.images), strict=True):
        torch.testing.assert_close(one, other)
    for method in ("zlg", "gleak", "ilrg"):
        counts = gleak.restore_labels(update, method)
        assert torch.equal(counts, gleak.restore_labels(linear, method))
    found = gleak.invert(update, batch.label_counts, "gleak", iterations=2, progress=False)
    assert found.images.isfinite().all()


def test_networks_of_torchvision_without_a_second_derivative(batch):
    small = gleak.Batch(batch.images[:2], batch.labels[:2], batch.class_names)
    model = gleak.build_model("torchvision:mobilenet_v3_small", small)
    update = gleak.fedsgd(model, small, training=False)
    found = gleak.invert(update, small.label_counts, iterations=2, progress=False)
    assert found.images.isfinite().all() and found.history["loss"].nunique() == 2


class Attention(Body):
    def __init__(self):
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 8, 8, 8), nn.Linear(128, 10)

    def forward(self, images):
        seen = self.patches(images).flatten(2).transpose(1, 2)[:, None]  # (K, 1, 16, 8)
        return self.head(F.scaled_dot_product_attention(seen, seen, seen).flatten(1))


class Hard(Body):
    def features(self, images):
        return F.hardsigmoid(self.conv(images)).flatten(1)


class Harder(Body):
    def features(self, images):
        return F.hardswish(self.conv(images)).flatten(1)


@pytest.mark.parametrize("derivative", ["exact", "difference"])
@pytest.mark.parametrize("kind", [Attention, Hard, Harder])
def test_functions_without_a_second_derivative(batch, kind, derivative):
    update = gleak.fedsgd(kind(), batch)
    search = {"iterations": 20, "progress": False, "derivative": derivative}
    found = gleak.invert(update, batch.label_counts, **search)
    assert found.history["loss"].iloc[-1] < found.history["loss"][0]


@pytest.mark.parametrize(
    ("name", "shape"),
    [("lenet", (3, 16, 24)), ("lenet", (1, 21, 12)), ("convnet", (1, 21, 12))]
    + [("resnet18", (1, 21, 12))],
)
def test_images_that_are_not_square(name, shape):
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    batch = gleak.Batch(images, torch.tensor([0, 1]), ["a", "b", "c"])
    update = gleak.fedsgd(gleak.build_model(name, batch), batch)
    assert update.input_shape == shape
    assert gleak.restore_labels(update, "zlg").tolist() == [1, 1, 0]
    found = gleak.invert(update, [1, 1, 0], "gleak", iterations=2, progress=False)
    assert found.images.shape == images.shape
