"""Networks of other packages: timm, transformers, factories."""

import sys
from types import SimpleNamespace

import pytest
import torch
from foreign import package
from networks import one_thread  # noqa: F401
from torch import nn

from mbq_lab.models import build_model


def build(name, **options):
    torch.manual_seed(0)
    return build_model(name, **{"classes": 5, "in_channels": 3, "image_size": (16, 16), **options})


FACTORIES = '''
from torch import nn

def flat(classes, in_channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size[0] * image_size[1], classes)).eval()

def takes_all(**arguments):
    assert sorted(arguments) == ["classes", "image_size", "in_channels"]
    return flat(**arguments)

def takes_some(*, classes, width=48):
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(width, classes))

def raises(**arguments):
    raise KeyError("no weights")

def number(classes):
    return classes

def pair():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x
    return Pair()

constant = 3
'''


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(FACTORIES)
    (tmp_path / "my_broken.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("my_networks", "my_broken"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("factory", ["flat", "takes_all", "takes_some"])
def test_a_factory_gets_the_arguments_it_takes(factories, factory):
    model = build(f"my_networks:{factory}")
    assert model.training and model(torch.randn(2, 3, 16, 16)).shape == (2, 5)


@pytest.mark.parametrize("name, match", [
    ("no_such_module:f", "got 'no_such_module:f' .ModuleNotFoundError: No module .*'; .*PYTHONPATH"),
    ("my_broken:f", "got 'my_broken:f' .ModuleNotFoundError: No module named 'no_such_package'"),
    ("my_networks:flatt", "AttributeError: .* has no attribute 'flatt'; did you mean 'flat'.."),
    ("my_networks:constant", "TypeError: 3 is not a callable object"),
    ("my_networks:raises", "got 'my_networks:raises' .KeyError: 'no weights'.$"),
    ("my_networks:number", "TypeError: number must return an nn.Module, returned int"),
    ("my_networks:pair", "a network for images of 3 x 16 x 16, .*TypeError: it must return logits, returned tuple"),
    ("torch.nn:Flatten", r"ValueError: one image must give logits of shape \(1, 5\), gave \(1, 768\)"),
    (":f", "Empty module name"),
])
def test_what_is_wrong_with_a_factory_is_named(factories, name, match):
    with pytest.raises(ValueError, match=f"build_model: name must lead to .*{match}") as caught:
        build(name)
    assert isinstance(caught.value.__cause__, Exception)


def test_images_a_factorys_network_cannot_take_are_found_at_build_time(factories):
    with pytest.raises(ValueError, match="images of 1 x 8 x 8, got 'my_networks:takes_some' .RuntimeError"):
        build("my_networks:takes_some", in_channels=1, image_size=(8, 8))


@pytest.fixture
def fake_timm(monkeypatch):
    """A stand-in with the three functions that are used; its networks record what they were made with."""
    def create_model(name, **options):
        if name not in ("fixed", "free", "unlisted"):
            raise RuntimeError(f"Unknown model ({name})")
        side = options.get("img_size", (16, 16))
        model = nn.Sequential(nn.Flatten(), nn.Linear(options["in_chans"] * side[0] * side[1], options["num_classes"]))
        model.options = options
        return model

    configs = {"fixed": SimpleNamespace(fixed_input_size=True), "free": SimpleNamespace(fixed_input_size=False)}
    fake = SimpleNamespace(create_model=create_model, get_pretrained_cfg=configs.get, list_models=lambda: list(configs))
    monkeypatch.setitem(sys.modules, "timm", fake)


@pytest.mark.parametrize("name, options", [
    ("fixed", {"num_classes": 5, "in_chans": 3, "img_size": (16, 16)}), ("free", {"num_classes": 5, "in_chans": 3}),
    ("unlisted", {"num_classes": 5, "in_chans": 3}),
])
def test_timm_gets_the_image_size_where_the_network_takes_it(fake_timm, name, options):
    assert build(f"timm:{name}").options == options


def test_timm_names_are_answered_with_the_nearest(fake_timm):
    with pytest.raises(ValueError, match=r"got 'timm:frea' \(RuntimeError: Unknown model .frea.; did you mean 'free'"):
        build("timm:frea")
    with pytest.raises(ValueError, match=r"images of 3 x 8 x 8, got 'timm:free' \(RuntimeError"):
        build("timm:free", image_size=(8, 8))


@pytest.mark.parametrize("name, size", [("timm:resnet18", (32, 48)), ("timm:vit_tiny_patch16_224", (32, 48))])
def test_networks_of_timm(name, size):
    package("timm")
    assert build(name, image_size=size)(torch.randn(2, 3, *size)).shape == (2, 5)


@pytest.mark.parametrize("name, package", [("timm:resnet18", "timm"), ("hf:some/model", "transformers")])
def test_a_missing_package_is_named(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"got '{name}' .*pip install {package}"):
        build(name)


@pytest.fixture
def configuration(tmp_path):
    """A tiny ViT of transformers for 5 classes of 1 x 8 x 8 images, its configuration saved without weights."""
    transformers = package("transformers")
    config = transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                                    image_size=8, patch_size=4, num_channels=1, num_labels=5)
    config.save_pretrained(tmp_path / "vit")
    return config, tmp_path / "vit"


def test_a_configuration_of_transformers_is_freshly_initialised(configuration):
    _, folder = configuration
    model, other = (build(f"hf:{folder}", classes=3, in_channels=2, image_size=(8, 12)) for _ in range(2))
    assert model.training and model(torch.randn(2, 2, 8, 12)).shape == (2, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_weights_of_transformers_are_loaded_in_float32_all_but_the_classifier(configuration):
    import transformers
    config, folder = configuration
    saved = transformers.ViTForImageClassification(config).bfloat16()
    saved.save_pretrained(folder)
    model = build(f"hf:{folder}", classes=3, in_channels=1, image_size=(8, 8))
    assert model.training and model(torch.randn(2, 1, 8, 8)).shape == (2, 3)
    loaded = model.network.state_dict()
    for key, value in saved.state_dict().items():
        assert loaded[key].dtype == torch.float32
        assert key.startswith("classifier") or torch.equal(loaded[key], value.float()), key
    same = build(f"hf:{folder}", classes=5, in_channels=1, image_size=(8, 8)).network.state_dict()
    assert all(torch.equal(same[key], value.float()) for key, value in saved.state_dict().items())
    with pytest.raises(ValueError, match=r"position_embeddings has shape \(1, 5, 16\) there, images of 1 x 12 x 12"):
        build(f"hf:{folder}", classes=3, in_channels=1, image_size=(12, 12))


def test_a_missing_folder_of_transformers_is_named(tmp_path):
    package("transformers")
    with pytest.raises(ValueError, match="build_model: name must lead to a network, got 'hf:.*missing' .OSError"):
        build(f"hf:{tmp_path}/missing")
