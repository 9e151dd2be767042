"""The default model's real weights against `transformers` on the same dequantised weights.

Run with `make test-weights`; downloads 500 MB once.
"""

import pytest
import torch

PROMPTS = [
    "def fibonacci(n):\n",
    "import numpy as np\n\ndef softmax(x):\n",
    "# Sort a list of tuples by the second element\n",
    "class Stack:\n    def __init__(self):\n",
    "The quick brown fox",
]


@pytest.fixture(scope="module")
def model():
    from unmask.decode.session import load

    return load("qwen2.5-coder-0.5b-instruct", dtype="float32")


@pytest.fixture(scope="module")
def twin(model, tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    from unmask.model.checkpoint import save_folder

    folder = tmp_path_factory.mktemp("twin")
    save_folder(model.backbone, folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.weights
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_continuation_equals_transformers_for_64_tokens(model, twin, prompt):
    ids = model.encode_prompt(prompt, raw=True)
    with torch.inference_mode():
        expected = twin.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=64,
            min_new_tokens=64,
            pad_token_id=0,
        )[0, len(ids) :].tolist()
    ends = model.end_ids  # generate forbids them up to min_new_tokens, so we do too
    run = model.run_rows([[*ids, *[None] * 64]], _settings(), samples=[0], end_ids=(), suppressed_ids=ends)
    run.finish()
    assert run.canvas.row_ids(0)[len(ids) :] == expected


@pytest.mark.weights
def test_a_batch_of_eight_prompts_equals_eight_single_runs(model):
    prompts = [*PROMPTS, "for i in", "while True:\n", "print("]
    together = model.generate_many(prompts, raw=True, max_new_tokens=32)
    for prompt, batched in zip(prompts, together, strict=True):
        assert model.generate(prompt, raw=True, max_new_tokens=32).text == batched.text


@pytest.mark.weights
def test_smollm2_continues_a_sentence_sensibly():
    from unmask.decode.session import load

    model = load("smollm2-135m-instruct", dtype="float32")
    assert "Paris" in model.generate("The capital of France is", raw=True, max_new_tokens=8).text


def _settings():
    from unmask.decode.settings import DecodeSettings

    return DecodeSettings(max_new_tokens=64)
