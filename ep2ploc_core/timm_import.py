"""The one place that imports timm: `from ep2ploc_core.timm_import import timm`.

timm imports torchvision, whose ordinary wheel is built for CUDA. Beside a CPU-only torch its compiled operators cannot
be loaded, and `import torchvision` then fails while it describes two of them ("operator torchvision::nms does not
exist"). Nothing here calls these operators, so it is enough to declare them and to import again.
"""

import importlib
import sys
from types import ModuleType

import torch

_declared: list[torch.library.Library] = []  # a declaration lasts as long as its object


def _import_timm() -> ModuleType:
    try:
        return importlib.import_module("timm")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] in ("torchvision", "timm")]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    return importlib.import_module("timm")


timm = _import_timm()
