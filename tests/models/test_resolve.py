import pytest
import torch

from secateur import models
from secateur.errors import ModelError, UnknownName
from secateur.models.resolve import OWN


@pytest.mark.parametrize("name", models.names())
def test_every_own_network_maps_its_default_input_to_logits(name):
    with torch.device("meta"):
        model = models.resolve(name, class_count=7).eval()
        logits = model(torch.empty(2, *models.default_input(name)))
    assert logits.shape == (2, 7)


def test_names_are_sorted_and_complete():
    assert models.names() == sorted(OWN)


def test_channels_classes_and_options_reach_the_network():
    model = models.resolve("densenet40", class_count=3, in_channels=1, stem_width=16)
    assert (model.conv1.in_channels, model.conv1.out_channels, model.fc.out_features) == (1, 16, 3)


def test_the_name_with_b_has_convolutions_on_its_shortcuts():
    plain, projected = (sum(p.numel() for p in models.resolve(n).parameters()) for n in ("resnet20", "resnet20_b"))
    assert projected - plain == 2_752


def test_a_misspelt_name_gets_a_suggestion():
    with pytest.raises(UnknownName, match=r"'resent20'; did you mean .*'resnet20'.*timm:NAME") as caught:
        models.resolve("resent20")
    assert "resnet20" in caught.value.near


def test_a_prefix_that_nobody_knows_is_an_unknown_name():
    with pytest.raises(UnknownName, match=r"torchvision:NAME, FILE.py:FUNCTION"):
        models.resolve("keras:resnet50")


def test_the_default_input_of_a_foreign_network_is_an_unknown_name():
    with pytest.raises(UnknownName, match="network of this package is called 'timm:resnet18'"):
        models.default_input("timm:resnet18")


def test_own_networks_say_that_they_are_untrained():
    with pytest.raises(ModelError, match="'resnet20' comes without trained weights"):
        models.resolve("resnet20", pretrained=True)


def test_an_option_that_the_network_does_not_have_is_an_error():
    with pytest.raises(ModelError, match="resnet20 cannot be built: got an unexpected keyword argument 'depth'"):
        models.resolve("resnet20", depth=3)
