import pytest
import torch

import gleak

NETWORKS = ["lenet", "convnet", "resnet18"]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dataset", ["cifar10-samples", "cifar100-samples", "mnist-samples"])
def test_models_fit_the_batch_and_begin_with_its_normalisation(name, dataset):
    batch = gleak.load_batch(dataset, size=2)
    model = gleak.build_model(name, batch).eval()
    assert model(batch.images).shape == (2, batch.num_classes)
    mean = model[0].mean.expand(batch.images.shape)
    assert torch.allclose(model[0](mean), torch.zeros(1))


def test_seed_fixes_the_weights_and_leaves_torchs_generator_alone(batch):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    weights = [gleak.build_model("lenet", batch, seed=s)[1][0].weight for s in (1, 1, 2)]
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_lenet_is_the_one_of_dlg(batch):
    model = gleak.build_model("lenet", batch)
    parameters = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert parameters.abs().max() <= 0.5
    assert parameters.std() == pytest.approx(1 / 12**0.5, rel=0.02)  # uniform of width 1
    assert model[1][-1].in_features == 768
    relu = gleak.build_model("lenet", batch, activation="relu")
    assert any(isinstance(module, torch.nn.ReLU) for module in relu.modules())


def test_large_images_get_the_imagenet_stem():
    batch = gleak.load_batch("imagenet-samples", indices=[0], image_size=96)
    assert gleak.build_model("resnet18", batch)[1].conv1.kernel_size == (7, 7)


def test_refusals(batch):
    with pytest.raises(ValueError, match="unknown model 'vgg'; known: lenet, convnet, resnet18,"):
        gleak.build_model("vgg", batch)
    with pytest.raises(ValueError, match="unknown activation 'tanh'"):
        gleak.build_model("lenet", batch, activation="tanh")


def test_efficientnet_knows_the_imagenet_samples():
    batch = gleak.load_batch("imagenet-samples", indices=range(5))
    model = gleak.build_model("efficientnet-lite0", batch).eval()
    with torch.no_grad():
        right = model(batch.images).argmax(1) == batch.labels
    assert right.sum() >= 4
    cifar = gleak.load_batch("cifar10-samples", indices=[0])
    with pytest.raises(ValueError, match="1000 classes; got 3 channels, 10 classes"):
        gleak.build_model("efficientnet-lite0", cifar)


# networks of others


def own_network(channels, num_classes, hidden=7):
    return torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(channels * 32 * 32, hidden),
        torch.nn.ReLU(),
        torch.nn.Linear(hidden, num_classes),
    )


def not_a_network():
    return "text"


def side_outputs(num_classes):
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3072, num_classes)

        def forward(self, images):
            return self.layer(images.flatten(1)), images

    return Two()


def no_logits(num_classes):
    class Softmax(type(side_outputs(num_classes))):
        def forward(self, images):
            logits, images = super().forward(images)
            return logits.softmax(1), images

    return Softmax()


def three_classes():
    return own_network(3, 3)


def test_ones_own_network_by_module_and_function(batch):
    model = gleak.build_model(f"module:{__name__}:own_network", batch, seed=3, hidden=5)
    assert model[1].out_features == 5
    again = gleak.build_model(f"module:{__name__}:own_network", batch, seed=3, hidden=5)
    assert torch.equal(model[1].weight, again[1].weight)
    assert torch.isfinite(gleak.fedsgd(model, batch).gradient["3.weight"]).all()


def test_torchvisions_classifiers(batch):
    name = "torchvision:shufflenet_v2_x0_5"
    model = gleak.build_model(name, batch, seed=1)
    assert model[1].fc.out_features == 10
    assert model[1].conv1[1].num_batches_tracked == 0  # the check of its size left no trace
    assert torch.equal(gleak.build_model(name, batch, seed=1)[1].fc.weight, model[1].fc.weight)
    assert torch.equal(model[0].mean, gleak.build_model("lenet", batch)[0].mean)


def test_trained_weights_by_name_come_from_torchvisions_cache(batch, tmp_path, monkeypatch):
    import torchvision

    net = torchvision.models.shufflenet_v2_x0_5()
    address = torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT.url
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = "torchvision:shufflenet_v2_x0_5"

    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(ValueError, match="could not be fetched: no network"):
        gleak.build_model(name, batch, weights="DEFAULT")
    torch.save(net.state_dict(), tmp_path / "hub" / "checkpoints" / address.rpartition("/")[2])
    model = gleak.build_model(name, batch, weights="DEFAULT")
    assert torch.equal(model[1].conv1[0].weight, net.conv1[0].weight)
    assert model[1].fc.out_features == 10  # a new last layer for the classes of the batch
    assert model[0].mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    with pytest.raises(ValueError, match="no weights 'BEST'; known: DEFAULT, IMAGENET1K_V1"):
        gleak.build_model(name, batch, weights="BEST")


def test_weights_from_a_file(batch, tmp_path):
    from safetensors.torch import save_file

    model = gleak.build_model("lenet", batch, seed=1)
    whole, inner = tmp_path / "whole.pth", tmp_path / "inner.safetensors"
    torch.save(model.state_dict(), whole)
    save_file(model[1].state_dict(), inner)
    for file in (whole, inner):
        loaded = gleak.build_model("lenet", batch, seed=2, weights=file)
        for name, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value)
    with pytest.raises(ValueError, match="does not fit the model"):
        gleak.build_model("convnet", batch, weights=inner)
    with pytest.raises(ValueError, match="weights of lenet are a file"):
        gleak.build_model("lenet", batch, weights="DEFAULT")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet9", "torchvision has no classifier 'resnet9'; known: alexnet"),
        ("torchvision:maskrcnn_resnet50_fpn", "torchvision has no classifier"),
        ("torchvision:vit_b_32", "does not take images of shape 3x32x32.*224"),
        ("module:nowhere.at:all", "cannot be imported"),
        (f"module:{__name__}:missing", "cannot be imported"),
        (f"module:{__name__}", "write module:package.module:function"),
        (f"module:{__name__}:not_a_network", "made str, not an nn.Module"),
        (f"module:{__name__}:no_logits", "output is a tuple, not a tensor of logits, and no"),
        (f"module:{__name__}:three_classes", "3 outputs; the data have 10 classes"),
        ("keras:resnet", "unknown model 'keras:resnet'"),
    ],
)
def test_networks_that_cannot_serve(batch, name, message):
    with pytest.raises(ValueError, match=message):
        gleak.build_model(name, batch)


def test_a_network_for_images_of_another_size_or_colour():
    gray = gleak.load_batch("mnist-samples", size=2)
    with pytest.raises(ValueError, match="does not take images of shape 1x28x28"):
        gleak.build_model(f"module:{__name__}:own_network", gray)
    with pytest.raises(ValueError, match="1x28x28.*three channels by channels=3"):
        gleak.build_model("torchvision:resnet18", gray)
    three = gleak.load_batch("mnist-samples", size=2, channels=3)
    assert gleak.build_model("torchvision:resnet18", three)[0].mean.shape == (3, 1, 1)
    one = gleak.load_batch("cifar10-samples", size=2, channels=1)
    assert gleak.build_model("lenet", one)[0].mean.shape == (1, 1, 1)
