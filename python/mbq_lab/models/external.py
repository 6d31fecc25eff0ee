"""Networks of other packages: timm:NAME, hf:NAME_OR_FOLDER, package.module:factory."""

import contextlib
import difflib
import importlib
import inspect
from pathlib import Path

import torch
from torch import nn

from mbq_train._errors import first_line
from mbq_train.quantize.bits import in_mode

_WEIGHT_FILES = (".safetensors", ".bin", ".h5", ".msgpack")


def build_external(name: str, *, classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """Return the network at the address `name`, in training mode, tried on one image; see build_model."""
    source, _, rest = name.partition(":")
    build = _SOURCES.get(source)
    if build is not None:
        model = build(name, rest, classes, in_channels, image_size)
    else:
        model = _from_factory(name, classes=classes, in_channels=in_channels, image_size=image_size)
    _check_logits(name, model, classes, in_channels, image_size)
    return model.train()


def _from_timm(name, network, classes, in_channels, image_size):
    timm = _import_package("timm", name)
    with _naming(name, hint=_near(network, timm.list_models())):
        config = timm.get_pretrained_cfg(network)
        size = {"img_size": image_size} if config is not None and config.fixed_input_size else {}
        return timm.create_model(network, num_classes=classes, in_chans=in_channels, **size)


def _from_transformers(name, source, classes, in_channels, image_size):
    transformers = _import_package("transformers", name)
    auto = transformers.AutoModelForImageClassification
    with _naming(name):
        config = transformers.AutoConfig.from_pretrained(source, num_labels=classes)
        height, width = image_size
        wanted = {"num_channels": in_channels, "image_size": height if height == width else image_size}
        for key in wanted.keys() & config.to_dict().keys():
            setattr(config, key, wanted[key])
        if Path(source).is_dir() and not any(file.suffix in _WEIGHT_FILES for file in Path(source).iterdir()):
            return HuggingFaceClassifier(auto.from_config(config, dtype=torch.float32))
        model, report = auto.from_pretrained(source, config=config, dtype=torch.float32, ignore_mismatched_sizes=True,
                                             output_loading_info=True)
        for key, stored, built in report["mismatched_keys"]:
            if tuple(built) != (classes, *stored[1:]):  # not the classifier, which is meant to start anew
                raise ValueError(f"{key} has shape {tuple(stored)} there, images of {in_channels} x {height} x {width} "
                                 f"need {tuple(built)}")
    return HuggingFaceClassifier(model)


class HuggingFaceClassifier(nn.Module):
    """An image classifier of transformers that takes (N, C, H, W) and returns its logits alone."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(pixel_values=x).logits


def _from_factory(name, **arguments):
    module_name, _, attribute = name.partition(":")
    with _naming(name, hint="; package.module:factory is looked for where Python imports from, see PYTHONPATH"):
        module = importlib.import_module(module_name)
    with _naming(name, hint=_near(attribute, vars(module))):
        factory = getattr(module, attribute)
    with _naming(name):
        parameters = inspect.signature(factory).parameters.values()
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        taken = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        model = factory(**{key: value for key, value in arguments.items() if takes_all or key in taken})
        if not isinstance(model, nn.Module):
            raise TypeError(f"{attribute} must return an nn.Module, returned {type(model).__name__}")
    return model


def _check_logits(name, model, classes, in_channels, image_size) -> None:
    """Raise ValueError unless the network turns one image into (1, classes)."""
    device = next((parameter.device for parameter in model.parameters()), None)
    image = torch.zeros(1, in_channels, *image_size, device=device)
    what = f"a network for images of {in_channels} x {image_size[0]} x {image_size[1]}"
    with _naming(name, what), torch.no_grad(), in_mode(model, training=False):
        out = model(image)
        if not isinstance(out, torch.Tensor):
            raise TypeError(f"it must return logits, returned {type(out).__name__}")
        if out.shape != (1, classes):
            raise ValueError(f"one image must give logits of shape (1, {classes}), gave {tuple(out.shape)}")


def _import_package(package: str, name: str):
    with _naming(name, hint=f"; pip install {package}"):
        return importlib.import_module(package)


@contextlib.contextmanager
def _naming(name: str, what: str = "a network", hint: str = ""):
    """Turn any exception inside the block into a ValueError that names the network; the cause stays attached."""
    try:
        yield
    except Exception as error:
        cause = f"{type(error).__name__}: {first_line(error)}{hint}"
        raise ValueError(f"build_model: name must lead to {what}, got {name!r} ({cause})") from error


def _near(name: str, names) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near and name not in names else ""


_SOURCES = {"timm": _from_timm, "hf": _from_transformers}
