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
    oblong = gleak.Batch(torch.rand(1, 3, 8, 16), torch.tensor([0]), ["a"])
    with pytest.raises(ValueError, match="square"):
        gleak.build_model("lenet", oblong)


def test_efficientnet_knows_the_imagenet_samples():
    batch = gleak.load_batch("imagenet-samples", indices=range(5))
    model = gleak.build_model("efficientnet-lite0", batch).eval()
    with torch.no_grad():
        right = model(batch.images).argmax(1) == batch.labels
    assert right.sum() >= 4
    cifar = gleak.load_batch("cifar10-samples", indices=[0])
    with pytest.raises(ValueError, match="1000 classes; got 3 channels, 10 classes"):
        gleak.build_model("efficientnet-lite0", cifar)
