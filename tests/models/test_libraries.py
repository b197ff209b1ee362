import importlib
import json

import pytest
import torch

from secateur import models
from secateur.errors import MissingExtra, ModelError, UnknownName


def on_meta(name, **kwargs):
    with torch.device("meta"):
        return models.resolve(name, **kwargs)


def test_timm_gets_classes_channels_and_its_own_options():
    pytest.importorskip("timm")
    model = on_meta("timm:resnet18", class_count=7, in_channels=1, drop_rate=0.25)
    assert (model.conv1.in_channels, model.fc.out_features, model.drop_rate) == (1, 7, 0.25)


def test_a_misspelt_timm_model_gets_a_suggestion():
    pytest.importorskip("timm")
    with pytest.raises(UnknownName, match=r"no timm model is called 'resnet_18'; did you mean .*'resnet18'"):
        models.resolve("timm:resnet_18")


def test_an_argument_that_timm_does_not_take_is_an_error():
    pytest.importorskip("timm")
    with pytest.raises(ModelError, match=r"timm:resnet18 cannot be built: .*no_such_option"):
        on_meta("timm:resnet18", no_such_option=1)


def test_torchvision_gets_the_classes():
    pytest.importorskip("torchvision")
    assert on_meta("torchvision:resnet18", class_count=7).fc.out_features == 7


def test_torchvision_downloads_no_backbone_unasked(monkeypatch):
    pytest.importorskip("torchvision")

    def no_network(*args, **kwargs):
        raise AssertionError("a download was tried")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", no_network)
    assert on_meta("torchvision:lraspp_mobilenet_v3_large", class_count=3).classifier is not None


def test_a_misspelt_torchvision_model_gets_a_suggestion():
    pytest.importorskip("torchvision")
    with pytest.raises(UnknownName, match=r"no torchvision model is called 'resnet81'; did you mean .*'resnet18'"):
        models.resolve("torchvision:resnet81")


def test_torchvision_cannot_change_the_channels():
    pytest.importorskip("torchvision")
    with pytest.raises(ModelError, match=r"in_channels=1: models of torchvision take 3; timm has"):
        models.resolve("torchvision:resnet18", in_channels=1)


@pytest.fixture
def vit_folder(tmp_path):
    pytest.importorskip("transformers")
    config = {
        "model_type": "vit",
        "architectures": ["ViTForMaskedImageModeling"],
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 8,
        "patch_size": 4,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.fixture
def gpt2_folder(tmp_path):
    pytest.importorskip("transformers")
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 8, "n_layer": 1, "n_head": 2}
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 11, "n_positions": 8}))
    return tmp_path


def test_a_hugging_face_folder_gives_the_class_that_its_configuration_names(gpt2_folder):
    assert type(on_meta(f"hf:{gpt2_folder}")).__name__ == "GPT2LMHeadModel"


def test_an_architecture_without_a_known_task_gives_the_bare_model(vit_folder):
    assert type(on_meta(f"hf:{vit_folder}")).__name__ == "ViTModel"


def test_a_class_count_asks_for_a_classifier(vit_folder):
    model = on_meta(f"hf:{vit_folder}", class_count=7, in_channels=1)
    assert type(model).__name__ == "ViTForImageClassification"
    assert model.classifier.out_features == 7
    assert model(torch.empty(2, 1, 8, 8, device="meta")).logits.shape == (2, 7)


def test_the_class_can_be_chosen_and_the_configuration_changed(vit_folder):
    model = on_meta(f"hf:{vit_folder}", auto_class="AutoModelForImageClassification", num_hidden_layers=2)
    assert type(model).__name__ == "ViTForImageClassification"
    assert model.config.num_hidden_layers == 2


def test_pretrained_loads_the_weights_of_the_folder(gpt2_folder):
    fresh = models.resolve(f"hf:{gpt2_folder}")
    fresh.save_pretrained(gpt2_folder)
    again = models.resolve(f"hf:{gpt2_folder}", pretrained=True)
    assert torch.equal(again.transformer.wte.weight, fresh.transformer.wte.weight)


def test_a_folder_without_a_configuration_is_an_error(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(ModelError, match=r"there is no .*config\.json; give a hub id or a model's folder"):
        models.resolve(f"hf:{tmp_path}")


def test_a_field_that_the_configuration_lacks_is_an_error(gpt2_folder):
    with pytest.raises(ModelError, match="its GPT2Config has no field no_such_field, num_channels"):
        models.resolve(f"hf:{gpt2_folder}", in_channels=1, no_such_field=1)


def test_a_misspelt_class_gets_a_suggestion(gpt2_folder):
    with pytest.raises(UnknownName, match="'AutoModelForCausal'; did you mean 'AutoModelForCausalLM'"):
        models.resolve(f"hf:{gpt2_folder}", auto_class="AutoModelForCausal")


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("timm:resnet18", "timm", "vision"),
        ("torchvision:resnet18", "torchvision", "vision"),
        ("hf:x", "transformers", "hf"),
    ],
)
def test_a_missing_library_names_the_extra_to_install(monkeypatch, name, module, extra):
    real = importlib.import_module

    def without(wanted, *args):
        if wanted.partition(".")[0] == module:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        return real(wanted, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(MissingExtra, match=rf'needs {module}.*: pip install "secateur\[{extra}\]"'):
        models.resolve(name)
