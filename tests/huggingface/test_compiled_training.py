"""TrainingArguments(torch_compile=True) with DropIn: no recompile, the results of eager mode, a stock checkpoint."""

import pytest
import torch
from runs import BUSY, GROWING, final_state, trainer_of
from tiny import tiny_batch, tiny_model
from transformers import AutoModelForAudioClassification


@pytest.mark.parametrize("config", [BUSY, GROWING], ids=["replace", "grow"])
def test_a_compiled_run_is_the_run_of_eager_mode(tmp_path, config):
    def run(folder, **settings):
        torch._dynamo.reset()
        model = tiny_model("ast", num_hidden_layers=1, problem_type="single_label_classification")
        trainer, callback = trainer_of(
            folder, "ast", model=model, config=config, max_steps=20, save_steps=20, **settings
        )
        with torch._dynamo.config.patch(error_on_recompile=True):
            trainer.train()
        assert callback.dropin.events >= 10
        return model, final_state(trainer, callback)

    model, compiled = run(tmp_path / "compiled", torch_compile=True, torch_compile_backend="aot_eager")
    _, eager = run(tmp_path / "eager")
    for name, expected in eager.items():
        torch.testing.assert_close(compiled[name], expected, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    stock = AutoModelForAudioClassification.from_pretrained(tmp_path / "compiled" / "checkpoint-20").eval()
    assert torch.equal(stock(**tiny_batch("ast")).logits, model.eval()(**tiny_batch("ast")).logits)
