"""Our models in timm's registry, as zoo_NAME, without importing timm for it.

timm takes two seconds to import. Where it is loaded already, our models are registered at once;
else a hook waits for `timm.models` and registers them when that has been imported.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from torch import nn

from zoo.errors import ZooError
from zoo.preprocess import STORED_SIZE
from zoo.registry import MODELS

PREFIX, TIMM = "zoo_", "timm.models"
NUM_CLASSES = 100  # where timm's caller names no number
# What timm's own scripts pass to every network, and the values that ask for nothing.
IDLE = {"drop_rate": 0.0, "in_chans": 3, "global_pool": "avg", "pretrained_model_args": None}

default_cfgs: dict[str, dict[str, Any]] = {}  # timm's registry reads them from here
__all__: list[str] = []  # timm adds each name that it registers


def announce() -> None:
    """Register our models in timm, now or as soon as it is imported."""
    if TIMM in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _Hook())


def register() -> None:
    """Enter every model of the catalogue that timm does not know yet."""
    from timm.models import is_model, register_model

    for name in sorted(MODELS):
        if not is_model(PREFIX + name):
            default_cfgs[PREFIX + name] = _config(name)
            register_model(_entry(name))


def _entry(name: str) -> Callable[..., nn.Module]:
    """What timm calls for zoo_NAME."""

    def build(
        pretrained: bool = False,
        pretrained_cfg: object = None,
        pretrained_cfg_overlay: object = None,
        cache_dir: object = None,
        **options: Any,
    ) -> nn.Module:
        from zoo.models import create_model

        for key, idle in IDLE.items():
            if options.pop(key, idle) != idle:
                raise ZooError(f"{PREFIX}{name} is built by the zoo, which has no option {key!r}")
        if "drop_path_rate" in options:
            rate = options.pop("drop_path_rate")
            options |= {"drop_path": rate} if rate else {}
        size = options.pop("img_size", STORED_SIZE)
        classes = options.pop("num_classes", NUM_CLASSES)
        model = create_model(
            name, num_classes=classes, image_size=size, pretrained=pretrained, **options
        )
        config = _config(name) | {"num_classes": classes, "input_size": (3, size, size)}
        config["architecture"] = PREFIX + name
        for key in ("pretrained_cfg", "default_cfg"):  # timm asks for either
            setattr(model, key, config)
        vars(model)["num_classes"] = classes
        return model

    build.__name__ = build.__qualname__ = PREFIX + name
    build.__doc__ = f"`{name}` of the zoo."
    return build


def _config(name: str) -> dict[str, Any]:
    """What timm keeps of each model about its images and its weights."""
    from zoo import pretrained
    from zoo.data import MEAN, STD

    file = pretrained.SHIPPED / f"{name}{pretrained.WEIGHTS}"
    return {
        "num_classes": NUM_CLASSES,
        "input_size": (3, STORED_SIZE, STORED_SIZE),
        "mean": MEAN,
        "std": STD,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "paper_ids": MODELS[name].paper,
        "file": str(file) if name in pretrained.available() else None,
    }


class _Hook:
    """A finder that finds nothing itself: it sees `timm.models` coming, and leaves after it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Let the other finders answer; have `register` called after the import."""
        if name != TIMM:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next(filter(None, found), None)
        if spec is not None and spec.loader is not None:
            self._call_after(spec.loader)
        return spec

    def _call_after(self, loader: Loader) -> None:
        execute = loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            del loader.exec_module  # the instance's own: the loader is as it was
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            register()

        loader.exec_module = execute_and_register  # type: ignore[method-assign]
