"""Networks to prune: those of the papers, and any other by name."""

from ._init import initialise_ as initialise_
from .densenet import DenseNet as DenseNet
from .densenet import densenet40 as densenet40
from .preresnet import PreResNet as PreResNet
from .preresnet import preresnet164 as preresnet164
from .resnet import ResNet as ResNet
from .resnet import digits_resnet as digits_resnet
from .resnet import resnet20 as resnet20
from .resnet import resnet32 as resnet32
from .resnet import resnet56 as resnet56
from .resnet import resnet110 as resnet110
from .resolve import default_input as default_input
from .resolve import names as names
from .resolve import resolve as resolve
from .vgg import VGG as VGG
from .vgg import vgg16_bn as vgg16_bn
from .vgg import vgg16_bn_a as vgg16_bn_a
from .vgg import vgg19_bn as vgg19_bn

__all__ = [
    "VGG",
    "DenseNet",
    "PreResNet",
    "ResNet",
    "default_input",
    "densenet40",
    "digits_resnet",
    "initialise_",
    "names",
    "preresnet164",
    "resnet20",
    "resnet32",
    "resnet56",
    "resnet110",
    "resolve",
    "vgg16_bn",
    "vgg16_bn_a",
    "vgg19_bn",
]
