"""Data sets by name. All files are made here, in the formats in which they are found outside."""

import gzip
import hashlib
import pickle
import struct
import zlib

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torchvision import datasets

import gleak
from gleak.datasets import MissingData, open_source, packed_fashion, read_image, stored

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def nothing_kept():
    stored.cache_clear()


def picture(path, mode="RGB", size=(8, 8), **options):
    """A random picture; its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) + (() if mode == "L" else (len(mode),))
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return torch.from_numpy(pixels / 255).float()


# torchvision's sets


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def cifar(root, monkeypatch, kind, names, label_key, meta_key):
    rows = RNG.integers(0, 256, (6, 3072), dtype=np.uint8)
    folder = root / kind.base_folder
    folder.mkdir()
    entry = {"data": rows, label_key: [0, 5, 9, 5, 1, 2]}
    for file in names:
        (folder / file).write_bytes(pickle.dumps(entry))
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps({meta_key: list("abcdefghij")}))
    made = [[file, md5(folder / file)] for file in names]
    monkeypatch.setattr(kind, "test_list", made[:1])
    monkeypatch.setattr(kind, "train_list", made[1:])
    monkeypatch.setitem(kind.meta, "md5", md5(folder / kind.meta["filename"]))
    return torch.from_numpy(rows[1].reshape(3, 32, 32) / 255).float()


def cifar10(root, monkeypatch):
    return cifar(root, monkeypatch, datasets.CIFAR10, ["t", "a", "b"], "labels", "label_names")


def cifar100(root, monkeypatch):
    kind = datasets.CIFAR100
    return cifar(root, monkeypatch, kind, ["test", "train"], "fine_labels", "fine_label_names")


def idx(kind):
    def make(root, monkeypatch):
        folder = root / kind.__name__ / "raw"
        folder.mkdir(parents=True)
        pixels = RNG.integers(0, 256, (6, 28, 28), dtype=np.uint8)
        labels = np.array([0, 5, 9, 5, 1, 2], dtype=np.uint8)
        for part in ("train", "t10k"):
            head = struct.pack(">IIII", 0x803, *pixels.shape)
            (folder / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
            head = struct.pack(">II", 0x801, 6)
            (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
        return torch.from_numpy(pixels[1][None] / 255).float()

    return make


def svhn(root, monkeypatch):
    pixels = RNG.integers(0, 256, (32, 32, 3, 6), dtype=np.uint8)
    labels = np.array([[10, 5, 9, 5, 1, 2]], dtype=np.uint8).T  # its files write a zero as 10
    lists = {}
    for part in ("train", "test"):
        file = root / f"{part}_32x32.mat"
        scipy.io.savemat(file, {"X": pixels, "y": labels})
        lists[part] = ["", file.name, md5(file)]
    monkeypatch.setattr(datasets.SVHN, "split_list", lists)
    return torch.from_numpy(pixels[..., 1].transpose(2, 0, 1) / 255).float()


def stl10(root, monkeypatch):
    kind = datasets.STL10
    folder = root / kind.base_folder
    folder.mkdir()
    pixels = RNG.integers(0, 256, (6, 3, 96, 96), dtype=np.uint8)
    labels = np.array([0, 5, 9, 5, 1, 2], dtype=np.uint8) + 1
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    for part in ("train", "test"):
        # column by column, as the set has it
        (folder / f"{part}_X.bin").write_bytes(pixels.transpose(0, 1, 3, 2).tobytes())
        (folder / f"{part}_y.bin").write_bytes(labels.tobytes())
    (folder / "unlabeled_X.bin").write_bytes(b"")
    for which in ("train_list", "test_list"):
        files = [[file, md5(folder / file)] for file, _ in getattr(kind, which)]
        monkeypatch.setattr(kind, which, files)
    return torch.from_numpy(pixels[1] / 255).float()


FORMATS = {
    "cifar10": (cifar10, "dog"),
    "cifar100": (cifar100, "bed"),
    "mnist": (idx(datasets.MNIST), "5"),
    "fashion-mnist": (idx(datasets.FashionMNIST), "sandal"),
    "svhn": (svhn, "5"),
    "stl10": (stl10, "dog"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_torchvisions_sets_are_read_from_their_own_files(name, tmp_path, monkeypatch):
    make, class_name = FORMATS[name]
    expected = make(tmp_path, monkeypatch)
    for part in ("", ":train"):
        batch = gleak.load_batch(name + part, indices=[1, 0], root=tmp_path)
        torch.testing.assert_close(batch.images[0], expected)
        assert batch.labels.tolist() == [5, 0]
        assert batch.class_names[5] == class_name
    monkeypatch.setenv("GLEAK_DATA", str(tmp_path))
    stored.cache_clear()
    assert len(gleak.load_batch(name, size=5, distinct_labels=True)) == 5
    assert gleak.build_model("lenet", batch)[0].mean.shape == (len(batch.images[0]), 1, 1)


def test_fashion_mnist_is_read_as_debian_packs_it(tmp_path, monkeypatch):
    expected = idx(datasets.FashionMNIST)(tmp_path, monkeypatch)
    for file in (tmp_path / "FashionMNIST" / "raw").iterdir():
        (tmp_path / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    monkeypatch.delenv("GLEAK_DATA", raising=False)
    monkeypatch.setattr(gleak.datasets, "DEBIAN_FASHION", tmp_path)
    packed_fashion.cache_clear()
    for part in ("", ":train"):
        batch = gleak.load_batch(f"fashion-mnist{part}", indices=[1, 0])
        assert torch.equal(batch.images[0], expected)
        assert (batch.labels.tolist(), batch.names[0]) == ([5, 0], "sandal")
        assert batch.dataset == f"fashion-mnist{part}"
    with pytest.raises(MissingData, match=r"is not in.*download=True"):
        gleak.load_batch("fashion-mnist", size=1, root=tmp_path / "elsewhere")
    packed_fashion.cache_clear()
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(MissingData, match="no complete Fashion-MNIST"):
        gleak.load_batch("fashion-mnist", size=1)


def test_missing_and_damaged_sets_say_what_to_do_and_nothing_is_fetched(tmp_path, monkeypatch):
    monkeypatch.delenv("GLEAK_DATA", raising=False)
    with pytest.raises(MissingData, match="root=... or by the environment variable GLEAK_DATA"):
        gleak.load_batch("cifar10", size=1)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("the network"))
    for name in [*FORMATS, "imagenet", "imagenet:train"]:
        with pytest.raises(MissingData, match=r"is not in.*(download=True|an account)"):
            gleak.load_batch(name, size=1, root=tmp_path)
    cifar10(tmp_path, monkeypatch)
    damaged = tmp_path / datasets.CIFAR10.base_folder / "t"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(MissingData, match="damaged"):
        gleak.load_batch("cifar10", size=1, root=tmp_path)


def test_only_download_goes_to_the_network(tmp_path, monkeypatch):
    asked = []

    def refuse(*arguments, **_):
        asked.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(MissingData, match="could not be fetched"):
        gleak.load_batch("svhn", size=1, root=tmp_path, download=True)
    assert asked


def test_imagenet_is_listed_not_read(tmp_path):
    for n in range(1000):
        (tmp_path / "imagenet" / "val" / f"n{n:08d}").mkdir(parents=True)
    last = tmp_path / "imagenet" / "val" / "n00000999"
    picture(last / "a.JPEG", size=(300, 260))
    (last / "broken.JPEG").write_bytes(b"no image")  # would be noticed if all were read
    batch = gleak.load_batch("imagenet", indices=[0], root=tmp_path)
    assert batch.images.shape == (1, 3, 224, 224)
    assert batch.class_names[batch.labels[0]] == "toilet tissue"
    with pytest.raises(ValueError, match="broken.JPEG is not a readable image"):
        gleak.load_batch("imagenet", indices=[1], root=tmp_path)
    last.rename(last.with_name("n1"))
    (last.with_name("n2")).mkdir()
    with pytest.raises(ValueError, match="1001 folders of classes, not 1000"):
        gleak.load_batch("imagenet", indices=[0], root=tmp_path)


# folders


def test_a_folder_for_each_class(tmp_path):
    expected = picture(tmp_path / "a b" / "dog" / "deep" / "1.png")
    for n in range(3):
        picture(tmp_path / "a b" / "cat" / f"{n}.png")
    (tmp_path / "a b" / "cat" / "notes.txt").write_text("not an image")
    picture(tmp_path / "a b" / ".cache" / "0.png")
    batch = gleak.load_batch(f"folder:{tmp_path}/a b", indices=[3, 0])
    assert list(batch.class_names) == ["cat", "dog"]
    assert batch.labels.tolist() == [1, 0]
    torch.testing.assert_close(batch.images[0], expected.permute(2, 0, 1))
    assert batch.dataset == "folder:a b"  # the path to it is nobody's business


def test_a_flat_folder_with_the_class_in_the_name(tmp_path):
    for name in ("cat_001.png", "sea-lion-2.png", "cat_7.jpg"):
        picture(tmp_path / name)
    batch = gleak.load_batch(f"images:{tmp_path}", size=3)
    assert list(batch.class_names) == ["cat", "sea_lion"]
    assert batch.label_counts.tolist() == [2, 1]


def test_a_flat_folder_with_a_table(tmp_path):
    for n in range(3):
        picture(tmp_path / f"{n}.png")
    table = tmp_path / "labels.csv"
    table.write_text('file,label,note\n0.png,10,x\n1.png,9,"a, b"\n2.png,10,\n')
    for name in (tmp_path, table):
        batch = gleak.load_batch(f"images:{name}", indices=[0, 1, 2])
        assert list(batch.class_names) == ["9", "10"]  # as numbers
        assert batch.labels.tolist() == [1, 0, 1]
    table.write_text("name,label\n0.png,1\n")
    with pytest.raises(ValueError, match="needs the columns file and label"):
        gleak.load_batch(f"images:{tmp_path}", size=1)
    table.write_text("file,label\n0.png,1\n7.png,2\n")
    with pytest.raises(ValueError, match="names 1 files that are not there"):
        gleak.load_batch(f"images:{tmp_path}", size=1)
    table.write_text("file,label\n0.png,1\n1.png,\n")
    with pytest.raises(ValueError, match="no class for"):
        gleak.load_batch(f"images:{tmp_path}", size=1)


def test_folders_that_cannot_serve(tmp_path):
    def refused(name, message, error=ValueError):
        with pytest.raises(error, match=message):
            gleak.load_batch(name, size=1)

    refused("folder:", "names no folder")
    refused("images:/nowhere", "no folder /nowhere", MissingData)
    refused(f"folder:{tmp_path}", "0 class folders; two or more are needed.*images:PATH")
    (tmp_path / "cat").mkdir()
    refused(f"folder:{tmp_path}", "1 class folders; two or more are needed")
    (tmp_path / "dog").mkdir()
    refused(f"folder:{tmp_path}", "no images in")
    refused(f"images:{tmp_path}", "no images in")
    refused(f"images:{tmp_path}", "for a folder for each class write folder:PATH")
    (tmp_path / "cat").rmdir()
    (tmp_path / "dog").rmdir()
    refused(f"images:{tmp_path}", "no images in .*; known endings")
    picture(tmp_path / "cat_1.png")
    refused(f"images:{tmp_path}", "one class only")
    picture(tmp_path / "7.png")
    refused(f"images:{tmp_path}", "no class for .*7.png")
    refused("tensorflow:cifar10", "unknown data set 'tensorflow:cifar10'")
    refused("cifar10:validation", "unknown data set")


# images


def test_gray_palette_and_alpha(tmp_path):
    gray = picture(tmp_path / "gray.png", "L")
    torch.testing.assert_close(read_image(tmp_path / "gray.png")[0], gray)
    Image.fromarray(np.uint8([[0, 1], [1, 0]])).convert("1").save(tmp_path / "bits.png")
    assert read_image(tmp_path / "bits.png").shape == (1, 2, 2)
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    palette.save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png").permute(1, 2, 0).tolist() == [
        [[1, 0, 0], [0, 0, 1]]
    ]
    palette.save(tmp_path / "clear.png", transparency=1)
    assert read_image(tmp_path / "clear.png").permute(1, 2, 0).tolist() == [[[1, 0, 0], [1, 1, 1]]]
    pixels = np.uint8([[[255, 0, 0, 255], [255, 0, 0, 0]]])
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    assert read_image(tmp_path / "rgba.png").permute(1, 2, 0).tolist() == [[[1, 0, 0], [1, 1, 1]]]
    Image.fromarray(pixels[..., 2:]).convert("LA").save(tmp_path / "la.png")
    assert read_image(tmp_path / "la.png").shape == (1, 1, 2)
    Image.new("CMYK", (2, 2)).save(tmp_path / "cmyk.jpg")
    assert read_image(tmp_path / "cmyk.jpg").mean() == 1  # no ink


def test_sixteen_bits_keep_their_depth(tmp_path):
    values = np.array([[0, 1, 257, 65535]], dtype=np.uint16)
    for ending in ("png", "tiff"):
        Image.fromarray(values).save(tmp_path / f"x.{ending}")
        read = read_image(tmp_path / f"x.{ending}")
        torch.testing.assert_close(read[0], torch.tensor([[0, 1, 257, 65535]]) / 65535)
    Image.fromarray(np.float32([[0.25, 1.0]])).save(tmp_path / "float.tiff")
    assert read_image(tmp_path / "float.tiff").tolist() == [[[0.25, 1.0]]]
    for values in ([[0.5, 2.0]], [[0.5, np.nan]]):
        Image.fromarray(np.float32(values)).save(tmp_path / "wild.tiff")
        with pytest.raises(ValueError, match="wild.tiff has values outside"):
            read_image(tmp_path / "wild.tiff")


def test_exif_orientation_is_followed(tmp_path):
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, :8] = 255  # left half white
    turned = Image.Exif()
    turned[0x0112] = 6  # turn by 90 degrees clockwise: left becomes top
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=turned)
    read = read_image(tmp_path / "x.png")
    assert read.shape == (3, 16, 8)
    assert read[:, :8].mean() == 1
    assert read[:, 8:].mean() == 0


# tag -> where the corner that is stored first lies in the image, (row, column)
CORNERS = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1)}
CORNERS[8] = (-1, 0)


@pytest.mark.parametrize("tag", CORNERS)
@pytest.mark.parametrize("ending", ["png", "tiff", "jpg"])
def test_all_orientations_of_exif(tmp_path, tag, ending):
    pixels = np.zeros((16, 24), dtype=np.uint8)
    pixels[:8, :8] = 255  # one block of JPEG
    turned = Image.Exif()
    turned[0x0112] = tag
    Image.fromarray(pixels).save(tmp_path / f"x.{ending}", exif=turned)
    read = read_image(tmp_path / f"x.{ending}")
    assert read.shape == ((1, 16, 24) if tag < 5 else (1, 24, 16))
    row, column = CORNERS[tag]
    assert read[0, row, column] > 0.9
    assert (read > 0.5).sum() == 64


def png(path, kind, width, values, *chunks):
    """A PNG of one row of 16-bit samples, as Pillow does not write them."""

    def chunk(name, data):
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    header = struct.pack(">IIBBBBB", width, 1, 16, kind, 0, 0, 0)
    row = b"\0" + struct.pack(f">{len(values)}H", *values)
    parts = [chunk(b"IHDR", header), *(chunk(*pair) for pair in chunks)]
    parts += [chunk(b"IDAT", zlib.compress(row)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_sixteen_bits_of_colour_and_of_transparency(tmp_path):
    file = tmp_path / "x.png"
    png(file, 2, 2, [65535, 0, 257, 32896, 1, 65535])
    read = read_image(file)
    torch.testing.assert_close(
        read[:, 0].T, torch.tensor([[1, 0, 1 / 255], [128 / 255, 0, 1]]), rtol=0, atol=1e-6
    )
    png(file, 0, 2, [65535, 257], (b"tRNS", struct.pack(">H", 257)))  # a gray that is clear
    assert read_image(file).tolist() == [[[1, 1]]]
    png(file, 0, 2, [65535, 257], (b"tRNS", struct.pack(">H", 258)))
    torch.testing.assert_close(read_image(file)[0], torch.tensor([[1, 257 / 65535]]))
    png(file, 4, 2, [32896, 65535, 257, 0])  # gray with an alpha
    torch.testing.assert_close(read_image(file)[:, 0, 1], torch.ones(3))
    torch.testing.assert_close(read_image(file)[:, 0, 0], torch.full((3,), 128 / 255))


def test_colours_that_would_be_a_guess_are_refused(tmp_path):
    Image.new("LAB", (2, 2), (128, 10, 10)).save(tmp_path / "lab.tiff")
    with pytest.raises(ValueError, match="lab.tiff is in LAB, which is not read here: save it as"):
        read_image(tmp_path / "lab.tiff")
    Image.fromarray(np.int32([[0, 70_000]])).save(tmp_path / "wide.tiff")
    with pytest.raises(ValueError, match="wide.tiff has values outside 16-bit integers"):
        read_image(tmp_path / "wide.tiff")


@pytest.mark.parametrize("kind", ["folder", "images"])
def test_images_that_are_not_square_come_as_they_are(tmp_path, kind):
    made = {
        name: picture(tmp_path / (f"{name}/0.png" if kind == "folder" else f"{name}_0.png"),
                      size=(5, 3))
        for name in ("cat", "dog")
    }  # fmt: skip
    batch = gleak.load_batch(f"{kind}:{tmp_path}", indices=[1, 0])
    assert batch.names == ["dog", "cat"] and batch.image_shape == (3, 3, 5)
    for name, image in zip(batch.names, batch.images, strict=True):
        torch.testing.assert_close(image, made[name].permute(2, 0, 1))


def test_broken_files_are_named_and_refused(tmp_path, monkeypatch):
    good, broken = tmp_path / "a_1.png", tmp_path / "b_1.png"
    picture(good, size=(64, 64))
    for content in (b"", b"\x89PNG\r\n\x1a\n", good.read_bytes()[:-3000], b"GIF89a"):
        broken.write_bytes(content)
        with pytest.raises(ValueError, match="b_1.png is not a readable image"):
            gleak.load_batch(f"images:{tmp_path}", indices=[1])
    picture(broken, size=(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"b_1.png is not a readable image.*bomb"):
        gleak.load_batch(f"images:{tmp_path}", indices=[1])


def test_sizes_and_channels_are_made_equal_on_request(tmp_path):
    picture(tmp_path / "a_0.png", size=(31, 17))
    picture(tmp_path / "b_0.png", size=(40, 20))
    picture(tmp_path / "b_1.png", mode="L", size=(20, 40))
    name = f"images:{tmp_path}"
    ways = rf"in the name .images:{tmp_path.name}@64. or by image_size=64"
    with pytest.raises(ValueError, match=r"unequal size .17x31, 20x40, 40x20.: say .*" + ways):
        gleak.load_batch(name, size=3)
    batch = gleak.load_batch(name, indices=[0, 1, 2], image_size=16)
    assert batch.images.shape == (3, 3, 16, 16)
    assert torch.equal(batch.images[2, 0], batch.images[2, 2])
    assert gleak.load_batch(name, indices=[2]).images.shape == (1, 1, 40, 20)
    assert gleak.load_batch(name, indices=[2], channels=3).images.shape == (1, 3, 40, 20)
    gray = gleak.load_batch(name, indices=[0], channels=1).images
    weights = torch.tensor([0.299, 0.587, 0.114])
    colour = gleak.load_batch(name, indices=[0]).images
    torch.testing.assert_close(gray[0, 0], (colour[0] * weights[:, None, None]).sum(0))
    for wrong in ({"channels": 2}, {"image_size": 0}):
        with pytest.raises(ValueError, match="channels is 1 or 3"):
            gleak.load_batch(name, size=1, **wrong)


def test_the_name_of_a_path_can_carry_the_size(tmp_path, monkeypatch):
    for n, size in enumerate([(31, 17), (40, 20), (20, 40), (12, 12)]):
        picture(tmp_path / "photos" / "ab"[n % 2] / f"{n}.png", size=size)
        picture(tmp_path / "flat" / f"{'ab'[n % 2]}_{n}.png", size=size)
    (tmp_path / "flat" / "table.csv").write_text("file,label\na_0.png,x\nb_1.png,y\n")
    name = f"folder:{tmp_path}/photos"
    batch = gleak.load_batch(f"{name}@16", size=4)
    assert batch.images.shape == (4, 3, 16, 16)
    assert batch.dataset == "folder:photos@16"
    same = gleak.load_batch(name, size=4, image_size=16)
    assert torch.equal(batch.images, same.images)
    assert gleak.load_batch(f"{name}@16", size=4, image_size=8).images.shape[-1] == 8
    for flat in ("flat", "flat/table.csv"):
        flat = gleak.load_batch(f"images:{tmp_path}/{flat}@16", size=2)
        assert flat.images.shape == (2, 3, 16, 16)
    halves = [gleak.load_pool(f"{name}@16", part) for part in ("server", "client")]
    assert [half.images.shape for half in halves] == [(2, 3, 16, 16)] * 2
    monkeypatch.chdir(tmp_path / "photos")
    assert len(gleak.load_batch("folder:.@16", size=4)) == 4
    monkeypatch.setenv("HOME", str(tmp_path / "photos"))
    assert len(gleak.load_batch("folder:~@16", size=4)) == 4
    # not sizes
    for wrong in ("photos@0", "photos@-1", "photos@", "photos@big"):
        with pytest.raises(MissingData, match=f"no folder .*{wrong}"):
            gleak.load_batch(f"folder:{tmp_path}/{wrong}", size=1)
    # a folder that is called so
    picture(tmp_path / "photos@16" / "c" / "0.png", size=(9, 9))
    picture(tmp_path / "photos@16" / "d" / "0.png", size=(9, 9))
    batch = gleak.load_batch(f"{name}@16", size=2)
    assert batch.images.shape == (2, 3, 9, 9)
    assert list(batch.class_names) == ["c", "d"]
    assert gleak.load_batch(f"{name}@16@4", size=2).images.shape == (2, 3, 4, 4)


def test_opening_a_folder_reads_no_image(tmp_path, monkeypatch):
    for n in range(4):
        picture(tmp_path / f"{n % 2}_{n}.png")
    monkeypatch.setattr("gleak.datasets.read_image", lambda file: pytest.fail("read"))
    assert open_source(f"images:{tmp_path}").labels.tolist() == [0, 0, 1, 1]
