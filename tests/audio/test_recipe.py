"""A recipe is checked, written, and read back."""

import pytest

from hf_neuroplastic.audio.recipe import Recipe, read_yaml, recipe_of, write_yaml
from hf_neuroplastic.neurons.config import DropInConfig

BAD = {
    "method": "sgd", "steps": 0, "batch_size": 0, "accumulate": 0, "learning_rate": float("nan"), "seconds": 0,
    "class_weights": "0.9", "average": 0, "precision": "fp8", "freeze": "first:0", "lora": 0, "patience": 0, "seed": -1,
    "warmup_share": 1.5, "balance": "speakers", "dropin": {},
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_setting_is_named_with_what_is_allowed(name):
    with pytest.raises(ValueError, match=rf"^{name} must be .*; got"):
        Recipe(**{name: BAD[name]})


def test_augmentation_is_checked_with_the_recipe():
    assert Recipe(augment="rawboost:5,codec").augment == "rawboost:5,codec"
    with pytest.raises(ValueError, match="augment has no part 'codecs'"):
        Recipe(augment="codecs")


def test_a_recipe_survives_yaml(tmp_path):
    recipe = Recipe(method="adamw", steps=7, freeze="last:2", dropin=DropInConfig(interval=3, threshold=float("inf")))
    write_yaml(tmp_path / "recipe.yaml", recipe.to_dict())
    assert recipe_of(read_yaml(tmp_path / "recipe.yaml")) == recipe


def test_unknown_settings_and_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a recipe has no stepz; its settings are method, steps"):
        recipe_of({"stepz": 3})
    for content, words in (("- a\n", "mapping of settings"), ("a: [", "is no YAML"), ("1: 2", "mapping of settings")):
        (tmp_path / "bad.yaml").write_text(content)
        with pytest.raises(ValueError, match=words):
            read_yaml(tmp_path / "bad.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert read_yaml(tmp_path / "empty.yaml") == {}
