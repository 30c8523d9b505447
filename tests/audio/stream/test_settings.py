"""What a YAML file may say of a stream."""

import pytest

from hf_neuroplastic.audio.stream.settings import ARMS, stream_of

GOOD = {"start": "A01", "stages": ["A02", ["A03", "A04"]], "rates": [1e-3, 1e-4], "recipe": {"steps": 7}}


def test_every_arm_goes_with_every_optimizer_and_tries_as_often():
    stream = stream_of(GOOD)
    assert (stream.start, stream.stages) == (("A01",), (("A02",), ("A03", "A04")))
    names = [arm.name for arm in stream.arms]
    assert len(names) == len(set(names)) == 2 * len(ARMS) - 1
    assert "consolidation, adamw" not in names
    assert all([trial.learning_rate for trial in arm.trials] == [1e-3, 1e-4] for arm in stream.arms)
    assert all(trial.steps == 7 for arm in stream.arms for trial in arm.trials)
    methods = {arm.name: arm.trials[0].method for arm in stream.arms}
    assert methods["replace, neuroplastic"] == "neuroplastic+dropin"
    assert methods["full, adamw"] == "adamw"


def test_an_arm_of_ones_own():
    own = {"mine": {"freeze": "last:1", "replay": 3, "trials": [{"steps": 5}, {"steps": 9, "learning_rate": 1e-2}]}}
    (arm,) = stream_of({**GOOD, "arms": own, "optimizers": ["adamw"]}).arms
    assert (arm.name, arm.replay, [trial.steps for trial in arm.trials]) == ("mine, adamw", 3, [5, 9])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stage": []}, "a stream has no stage"),
        ({"stages": []}, "stages must be a list of attacks"),
        ({"stages": [[]]}, "stages must be"),
        ({"stages": ["A02", "A02"]}, "name each attack once"),
        ({"stages": ["A01"]}, "name each attack once"),
        ({"stages": "A02"}, "stages must be a list"),
        ({"stages": [2]}, "stages must be"),
        ({"start": 3}, "start must be"),
        ({"examples": 1}, "examples must be a whole number of at least 2"),
        ({"examples": True}, "examples must be"),
        ({"start_steps": 0.5}, "start_steps must be"),
        ({"start_rate": "fast"}, "start_rate must be"),
        ({"evaluate": 0}, "evaluate must be"),
        ({"by": "speaker"}, "by must be one of attack, corpus"),
        ({"apart": "corpus"}, "apart must be one of speaker, utterance"),
        ({"seeds": []}, "seeds must be"),
        ({"seeds": [0, 0]}, "seeds must be different"),
        ({"seeds": 3}, "seeds must be"),
        ({"rates": []}, "rates must be"),
        ({"rates": ["high"]}, "rates must be"),
        ({"rates": 1e-3}, "rates must be"),
        ({"rates": [2.0]}, "rates must be"),
        ({"optimizers": ["sgd"]}, "optimizers"),
        ({"arms": ["fulll"]}, "there is no arm 'fulll'"),
        ({"arms": 3}, "arms must be"),
        ({"arms": []}, "arms must be"),
        ({"arms": {"mine": {"colour": 1}}}, "a recipe has no colour"),
        ({"arms": {"mine": {"anchor": "rope"}}}, "anchor of arm 'mine'"),
        ({"arms": {"mine": {"anchor": "ewc"}}}, "strength"),
        ({"arms": {"mine": {"replay": -1}}}, "replay of arm 'mine'"),
        ({"arms": {"mine": {"neurons": 4, "lora": 2}}}, "neurons"),
        ({"arms": {"mine": {"neurons": 4}}, "recipe": {"lora": 2}}, "neurons of arm 'mine, adamw' say what learns"),
        (
            {"arms": {"mine": {"lora": 2, "anchor": "l2", "strength": 1.0}}},
            "anchor of arm 'mine, adamw' .* trains LoRA",
        ),
        ({"arms": {"mine": {"neurons": 4, "anchor": "ewc", "strength": 1.0}}}, "anchor of arm .* grows neurons"),
        (
            {"arms": {"mine": {"dropin": {"preset": "dropin", "neurons": 3}, "anchor": "l2", "strength": 1.0}}},
            "anchor of arm .* grows neurons",
        ),
        ({"arms": {"mine": {"average": 3}}}, "average of arm 'mine' would do nothing"),
        ({"arms": {"one": {"trials": [{}]}, "two": {}}}, "as many trials as"),
        ({"recipe": {"steps": 0}}, "steps must be"),
        ({"recipe": 3}, "recipe must be"),
        ({"recipe": {"method": "adamw"}}, "method of recipe would be overwritten"),
        ({"recipe": {"learning_rate": 1e-3}}, "learning_rate of recipe would be overwritten"),
        ({"arms": {"mine": {"seed": 3}}}, "seed of arm 'mine' would be overwritten"),
        ({"arms": {"mine": {"trials": [{"method": "adamw"}]}}}, "method of arm 'mine'"),
        ({"recipe": {"dropin": {"preset": "none"}}}, "no preset 'none'"),
        ({"arms": {"mine": {"dropin": {"preset": "dropin", "neuron": 3}}}}, "preset 'dropin'"),
    ],
)
def test_what_is_wrong_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        stream_of({**GOOD, **change})
