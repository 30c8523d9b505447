"""What is saved for the Hub is a stock model, and its card says the truth."""

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from runs import BUSY, trainer_of
from tiny import tiny_batch, tiny_mlp, tiny_model
from transformers import AutoModelForAudioClassification, Wav2Vec2FeatureExtractor

from hf_neuroplastic import DropIn, DropInConfig, NeuroPlastic, load_side_files, save_for_hub
from hf_neuroplastic.huggingface.checkpoint import INDEX_FILE, TENSOR_FILE
from hf_neuroplastic.huggingface.hub import TAG

WATCH = DropInConfig(max_fraction=0.0, stop=None)


@pytest.mark.parametrize("family", ["wav2vec2", "ast"])
def test_the_folder_is_a_stock_model_with_a_tagged_card(tmp_path, family):
    model = tiny_model(family)
    dropin = DropIn(model, DropInConfig(stop=None))
    model(**tiny_batch(family)).loss.backward()
    dropin.step()
    folder = tmp_path / "my-model"
    save_for_hub(model, folder, processor=Wav2Vec2FeatureExtractor(), dropin=dropin, metadata={"license": "mit"})
    names = {path.name for path in folder.iterdir()}
    assert {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        TENSOR_FILE,
        INDEX_FILE,
    } <= names
    stock, info = AutoModelForAudioClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), stock.parameters(), strict=True))
    load_side_files(DropIn(stock, DropInConfig(stop=None)), folder)
    card = ModelCard.load(folder / "README.md")
    assert card.data.to_dict() == {"library_name": "transformers", "license": "mit", "tags": [TAG]}
    assert yaml.safe_load((folder / "README.md").read_text().split("---")[1]) == card.data.to_dict()
    for words in (
        f"Trained with `{TAG}`",
        type(model).__name__,
        "After 1 steps",
        "48 of 48 neurons in 2 layers",
        INDEX_FILE,
    ):
        assert words in card.text


HELD = "---\nlicense: mit\ntags:\n- speech\nlanguage: de\n---\n"


@pytest.mark.parametrize("held", [HELD, ""], ids=["with metadata", "without"])
def test_a_card_keeps_its_text_and_metadata(tmp_path, held):
    (tmp_path / "README.md").write_text(held + "\n# Mine\n\nYears of work.\n")
    for _ in range(2):
        save_for_hub(tiny_model("ast"), tmp_path, metadata={"language": "en", "tags": ["audio"]})
    card = ModelCard.load(tmp_path / "README.md")
    assert "# Mine\n\nYears of work." in card.text
    assert sorted(card.data.tags) == sorted(["audio", TAG] + ["speech"] * bool(held))
    assert card.data.license == ("mit" if held else None)
    assert (card.data.language, card.data.library_name) == ("en", "transformers")


def test_only_models_of_transformers_can_be_saved(tmp_path):
    with pytest.raises(TypeError, match=r"model must be a transformers\.PreTrainedModel, got Sequential"):
        save_for_hub(tiny_mlp(), tmp_path / "o")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("config", "optimizer", "tagged"),
    [(BUSY, torch.optim.AdamW, True), (WATCH, NeuroPlastic, True), (WATCH, torch.optim.AdamW, False)],
)
def test_trainer_pushes_the_tag_where_it_is_true(tmp_path, config, optimizer, tagged):
    made, _ = trainer_of(tmp_path, "ast", config=config, optimizer=optimizer, max_steps=1)
    assert made.model.model_tags is None  # not before training
    made.train()
    assert (made.model.model_tags or []) == [TAG] * tagged


def test_one_tag_may_be_given_as_a_string(tmp_path):
    save_for_hub(tiny_model("ast"), tmp_path, metadata={"tags": "audio"})
    assert ModelCard.load(tmp_path / "README.md").data.tags == ["audio", TAG]
